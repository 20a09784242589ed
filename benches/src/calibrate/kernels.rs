//! What is measured: one operation each, in the text format.
//!
//! A body is the operation, once or a few times; it is repeated so that the loop around it weighs
//! little. Results flow into `$x`, `$f` or `$v`, so that no compiler leaves anything out.

/// What a kernel uses most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The processor.
    Compute,
    /// The host, on the guest's behalf.
    Host,
    /// Memory that is in no cache.
    Miss,
    /// Memory that nobody has touched before.
    Page,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Host => "host",
            Self::Miss => "miss",
            Self::Page => "page",
        }
    }
}

/// Something that a guest can do.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    /// Operations of one turn of the loop.
    pub(crate) operations: u32,
    /// The loop's body: leaves nothing on the stack.
    body: String,
    /// How often the body stands in the loop.
    copies: usize,
    /// Turns of the loop that one call may ask for.
    pub(crate) times_max: u32,
    imports: &'static str,
    functions: &'static str,
    /// Initial memory in pages.
    pages: u32,
    /// Every call gets a fresh instance.
    fresh: bool,
}

impl Kernel {
    fn new(kind: Kind, name: &str, operations: u32, body: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            operations: operations * 8,
            body: body.into(),
            copies: 8,
            times_max: 1 << 24,
            imports: "",
            functions: "",
            pages: 34,
            fresh: false,
        }
    }

    fn compute(name: &str, operations: u32, body: impl Into<String>) -> Self {
        Self::new(Kind::Compute, name, operations, body)
    }

    fn host(name: &str, imports: &'static str, body: &str) -> Self {
        let mut this = Self::new(Kind::Host, name, 1, body);
        this.imports = imports;
        this
    }

    fn with(mut self, functions: &'static str) -> Self {
        self.functions = functions;
        self
    }

    fn pages(mut self, pages: u32) -> Self {
        self.pages = pages;
        self
    }

    /// The body stands so often that the loop around it hardly counts.
    fn tight(mut self) -> Self {
        self.operations *= 4;
        self.copies *= 4;
        self
    }

    /// The body stands once, and is done so often at most.
    fn once(mut self, times_max: u32) -> Self {
        self.operations /= 8;
        self.copies = 1;
        self.times_max = times_max;
        self
    }

    fn fresh(mut self) -> Self {
        self.fresh = true;
        self
    }

    pub(crate) fn module(&self) -> String {
        let Self { imports, functions, pages, .. } = self;
        let body = self.body.repeat(self.copies);
        format!(
            r#"(module {imports}
                (memory (export "memory") {pages})
                (@custom "cell:interface" "receptor run(bytes) -> bytes\n\n")
                {functions}
                ;; What the locals start with, so that no compiler knows it: integers, 1.5 and a little more than 1.
                (data (i32.const 512) "\25\6f\41\05\0b\3a\39\01\03\00\00\00\00\00\00\00")
                (data (i32.const 528) "\00\00\00\00\00\00\f8\3f\08\e5\3c\01\00\00\f0\3f")
                (data (i32.const 544) "\00\00\a0\3f\53\00\80\3f")
                (func $run (export "run") (param $n i32) (result i64)
                    (local $i i32) (local $a i32) (local $b i32) (local $x i64) (local $y i64)
                    (local $f f64) (local $g f64) (local $s f32) (local $t f32) (local $v v128) (local $w v128)
                    (local.set $x (i64.load (i32.const 512)))
                    (local.set $y (i64.load (i32.const 520)))
                    (local.set $a (i32.load (i32.const 512)))
                    (local.set $b (i32.load (i32.const 520)))
                    (local.set $f (f64.load (i32.const 528)))
                    (local.set $g (f64.load (i32.const 536)))
                    (local.set $s (f32.load (i32.const 544)))
                    (local.set $t (f32.load (i32.const 548)))
                    (local.set $v (v128.load (i32.const 528)))
                    (local.set $w (v128.load (i32.const 528)))
                    (if (local.get $n) (then
                        (loop $again {body}
                            (local.set $i (i32.add (local.get $i) (i32.const 1)))
                            (br_if $again (i32.lt_u (local.get $i) (local.get $n))))))
                    (i64.add (i64.add (local.get $x) (i64.extend_i32_u (local.get $a)))
                        (i64.add (i64.trunc_sat_f64_s (local.get $f))
                            (i64.add (i64x2.extract_lane 0 (local.get $v))
                                (i64.trunc_sat_f32_s (local.get $s))))))
                (func (export "cell_mailbox") (param i32) (result i32) (i32.const 1024))
                (func (export "cell_receive") (param i32 i32 i32) (result i64)
                    (i64.store (i32.const 2048) (call $run (i32.load (local.get 1))))
                    (i64.const 0x8_00000800)))"#
        )
    }

    pub(crate) const fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The cell's manifest beside its name.
    pub(crate) const fn manifest(&self) -> &'static str {
        if self.fresh { "isolation = \"call\"\n" } else { "" }
    }
}

const TABLE: &str = "(table 8 funcref) (elem (i32.const 0) $f0 $f1 $f2 $f3 $f0 $f1 $f2 $f3)
    (type $t (func (param i32) (result i32)))
    (func $f0 (type $t) (i32.add (local.get 0) (i32.const 1)))
    (func $f1 (type $t) (i32.xor (local.get 0) (i32.const 5)))
    (func $f2 (type $t) (i32.sub (local.get 0) (i32.const 3)))
    (func $f3 (type $t) (i32.rotl (local.get 0) (i32.const 1)))";
/// A ring through 60 MiB, each step to a place that no prefetcher guesses.
const RING: &str = "(func (export \"_initialize\") (local $i i32) (local $at i32) (local $next i32)
    (loop $again
        (local.set $next (i32.and (i32.const 524287)
            (i32.add (i32.mul (local.get $at) (i32.const 1103515245)) (i32.const 12345))))
        (i32.store offset=4096 (i32.mul (local.get $at) (i32.const 112)) (i32.mul (local.get $next) (i32.const 112)))
        (local.set $at (local.get $next))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $i) (i32.const 524288)))))";
macro_rules! wasi {
    ($name:literal, $type:literal) => {
        concat!("(import \"wasi_snapshot_preview1\" \"", $name, "\" (func $host ", $type, "))")
    };
}
macro_rules! cell {
    ($name:literal, $type:literal) => {
        concat!("(import \"cell_v1\" \"", $name, "\" (func $host ", $type, "))")
    };
}

macro_rules! cell_and_set {
    ($name:literal, $type:literal) => {
        concat!(
            cell!($name, $type),
            "(import \"cell_v1\" \"kv_set\" (func $set (param i32 i32 i32 i32) (result i32)))"
        )
    };
}

/// Operators by what they take and leave: the operation of a kernel, with `OP` for its name.
const OPERATORS: &[(&str, &str)] = &[
    (
        "(local.set $v (OP (i64x2.add (local.get $v) (local.get $w)) (local.get $w)))",
        "v128.and v128.andnot v128.or v128.xor",
    ),
    (
        "(local.set $v (OP (i64x2.add (local.get $v) (local.get $w))))",
        "v128.not i8x16.abs i8x16.neg i16x8.abs i16x8.neg i32x4.abs i32x4.neg i64x2.abs i64x2.neg f32x4.abs f32x4.neg f64x2.abs f64x2.neg",
    ),
    ("(local.set $s (f32.copysign (local.get $t) (OP (local.get $s))))", "f32.abs f32.neg"),
    ("(local.set $f (f64.copysign (local.get $g) (OP (local.get $f))))", "f64.abs f64.neg"),
    (
        "(local.set $x (OP (i64.add (local.get $x) (local.get $y)) (local.get $y)))",
        "i64.and i64.or i64.xor i64.rotl i64.rotr",
    ),
    (
        "(local.set $x (OP (i64.add (local.get $x) (local.get $y))))",
        "i64.extend8_s i64.extend16_s i64.extend32_s",
    ),
    (
        "(local.set $a (OP (i32.add (local.get $a) (local.get $b)) (local.get $b)))",
        "i32.and i32.or i32.xor i32.rotl i32.rotr",
    ),
    ("(local.set $a (OP (i32.add (local.get $a) (local.get $b))))", "i32.extend8_s i32.extend16_s"),
    ("(local.set $a (OP (local.get $a)))", "i32.clz i32.ctz i32.popcnt"),
    (
        "(local.set $a (OP (local.get $a) (local.get $b)))",
        "i32.add i32.sub i32.mul i32.shl i32.shr_s i32.shr_u i32.eq i32.ne i32.lt_s i32.lt_u i32.gt_s i32.gt_u i32.le_s i32.le_u i32.ge_s i32.ge_u",
    ),
    (
        "(local.set $a (i32.or (OP (local.get $a) (local.get $b)) (local.get $b)))",
        "i32.div_s i32.div_u i32.rem_s i32.rem_u",
    ),
    ("(local.set $x (OP (local.get $x)))", "i64.clz i64.ctz i64.popcnt"),
    (
        "(local.set $x (OP (local.get $x) (local.get $y)))",
        "i64.add i64.sub i64.mul i64.shl i64.shr_s i64.shr_u",
    ),
    (
        "(local.set $a (i32.add (local.get $a) (OP (local.get $x) (local.get $y))))",
        "i64.eq i64.ne i64.lt_s i64.lt_u i64.gt_s i64.gt_u i64.le_s i64.le_u i64.ge_s i64.ge_u",
    ),
    (
        "(local.set $x (i64.or (OP (i64.add (local.get $x) (i64.const 0x7000000000000000)) (local.get $y)) (local.get $y)))",
        "i64.div_s i64.div_u i64.rem_s i64.rem_u",
    ),
    (
        "(local.set $x (i64.add (local.get $x) (i64.extend_i32_u (OP (local.get $x)))))",
        "i64.eqz i32.wrap_i64",
    ),
    ("(local.set $a (i32.add (local.get $b) (OP (local.get $a))))", "i32.eqz"),
    (
        "(local.set $x (OP (i32.wrap_i64 (i64.add (local.get $x) (local.get $y)))))",
        "i64.extend_i32_s i64.extend_i32_u",
    ),
    ("(local.set $f (OP (local.get $f)))", "f64.ceil f64.floor f64.trunc f64.nearest f64.sqrt"),
    (
        "(local.set $f (OP (local.get $f) (local.get $g)))",
        "f64.add f64.sub f64.mul f64.div f64.min f64.max f64.copysign",
    ),
    (
        "(local.set $a (i32.add (local.get $a) (OP (local.get $f) (local.get $g))))",
        "f64.eq f64.ne f64.lt f64.gt f64.le f64.ge",
    ),
    ("(local.set $s (OP (local.get $s)))", "f32.ceil f32.floor f32.trunc f32.nearest f32.sqrt"),
    (
        "(local.set $s (OP (local.get $s) (local.get $t)))",
        "f32.add f32.sub f32.mul f32.div f32.min f32.max f32.copysign",
    ),
    (
        "(local.set $a (i32.add (local.get $a) (OP (local.get $s) (local.get $t))))",
        "f32.eq f32.ne f32.lt f32.gt f32.le f32.ge",
    ),
    (
        "(local.set $f (f64.reinterpret_i64 (i64.or (local.get $x) (OP (local.get $f)))))",
        "i64.trunc_sat_f64_s i64.trunc_sat_f64_u i64.reinterpret_f64",
    ),
    (
        "(local.set $x (i64.or (local.get $y) (i64.extend_i32_u (OP (f64.reinterpret_i64 (local.get $x))))))",
        "i32.trunc_sat_f64_s i32.trunc_sat_f64_u",
    ),
    (
        "(local.set $x (i64.extend_i32_u (OP (f32.reinterpret_i32 (i32.or (local.get $b) (i32.wrap_i64 (local.get $x)))))))",
        "i32.trunc_sat_f32_s i32.trunc_sat_f32_u i32.reinterpret_f32",
    ),
    (
        "(local.set $x (OP (f32.reinterpret_i32 (i32.or (local.get $b) (i32.wrap_i64 (local.get $x))))))",
        "i64.trunc_sat_f32_s i64.trunc_sat_f32_u",
    ),
    (
        "(local.set $a (i32.or (local.get $b) (OP (local.get $g)))) (local.set $g (f64.convert_i32_s (local.get $a)))",
        "i32.trunc_f64_s i32.trunc_f64_u",
    ),
    (
        "(local.set $x (i64.or (local.get $y) (OP (local.get $g)))) (local.set $g (f64.convert_i32_s (i32.wrap_i64 (local.get $x))))",
        "i64.trunc_f64_s i64.trunc_f64_u",
    ),
    (
        "(local.set $a (i32.or (local.get $b) (OP (local.get $t)))) (local.set $t (f32.convert_i32_s (local.get $a)))",
        "i32.trunc_f32_s i32.trunc_f32_u",
    ),
    (
        "(local.set $x (i64.or (local.get $y) (OP (local.get $t)))) (local.set $t (f32.convert_i32_s (i32.wrap_i64 (local.get $x))))",
        "i64.trunc_f32_s i64.trunc_f32_u",
    ),
    (
        "(local.set $x (i64.add (local.get $y) (i64.reinterpret_f64 (OP (local.get $x)))))",
        "f64.convert_i64_s f64.convert_i64_u f64.reinterpret_i64",
    ),
    (
        "(local.set $x (i64.add (local.get $y) (i64.reinterpret_f64 (OP (i32.wrap_i64 (local.get $x))))))",
        "f64.convert_i32_s f64.convert_i32_u",
    ),
    (
        "(local.set $x (i64.extend_i32_u (i32.add (local.get $b) (i32.reinterpret_f32 (OP (local.get $x))))))",
        "f32.convert_i64_s f32.convert_i64_u",
    ),
    (
        "(local.set $a (i32.add (local.get $b) (i32.reinterpret_f32 (OP (local.get $a)))))",
        "f32.convert_i32_s f32.convert_i32_u f32.reinterpret_i32",
    ),
    ("(local.set $f (f64.promote_f32 (OP (local.get $f))))", "f32.demote_f64"),
    (
        "(local.set $v (OP (local.get $v)))",
        "i8x16.popcnt i16x8.extadd_pairwise_i8x16_s i16x8.extadd_pairwise_i8x16_u i16x8.extend_low_i8x16_s i16x8.extend_high_i8x16_s i16x8.extend_low_i8x16_u i16x8.extend_high_i8x16_u i32x4.extadd_pairwise_i16x8_s i32x4.extadd_pairwise_i16x8_u i32x4.extend_low_i16x8_s i32x4.extend_high_i16x8_s i32x4.extend_low_i16x8_u i32x4.extend_high_i16x8_u i64x2.extend_low_i32x4_s i64x2.extend_high_i32x4_s i64x2.extend_low_i32x4_u i64x2.extend_high_i32x4_u f32x4.sqrt f32x4.ceil f32x4.floor f32x4.trunc f32x4.nearest f64x2.sqrt f64x2.ceil f64x2.floor f64x2.trunc f64x2.nearest i32x4.trunc_sat_f32x4_s i32x4.trunc_sat_f32x4_u i32x4.trunc_sat_f64x2_s_zero i32x4.trunc_sat_f64x2_u_zero f32x4.convert_i32x4_s f32x4.convert_i32x4_u f64x2.convert_low_i32x4_s f64x2.convert_low_i32x4_u f32x4.demote_f64x2_zero f64x2.promote_low_f32x4",
    ),
    (
        "(local.set $v (OP (local.get $v) (local.get $w)))",
        "i8x16.swizzle i8x16.eq i8x16.ne i8x16.lt_s i8x16.lt_u i8x16.gt_s i8x16.gt_u i8x16.le_s i8x16.le_u i8x16.ge_s i8x16.ge_u i8x16.narrow_i16x8_s i8x16.narrow_i16x8_u i8x16.add i8x16.add_sat_s i8x16.add_sat_u i8x16.sub i8x16.sub_sat_s i8x16.sub_sat_u i8x16.min_s i8x16.min_u i8x16.max_s i8x16.max_u i8x16.avgr_u i16x8.eq i16x8.ne i16x8.lt_s i16x8.lt_u i16x8.gt_u i16x8.le_s i16x8.le_u i16x8.ge_s i16x8.ge_u i16x8.narrow_i32x4_s i16x8.narrow_i32x4_u i16x8.add i16x8.add_sat_s i16x8.add_sat_u i16x8.sub i16x8.sub_sat_s i16x8.sub_sat_u i16x8.mul i16x8.min_s i16x8.min_u i16x8.max_s i16x8.max_u i16x8.avgr_u i16x8.q15mulr_sat_s i16x8.extmul_low_i8x16_s i16x8.extmul_high_i8x16_s i16x8.extmul_low_i8x16_u i16x8.extmul_high_i8x16_u i32x4.eq i32x4.ne i32x4.lt_s i32x4.lt_u i32x4.gt_s i32x4.gt_u i32x4.le_s i32x4.le_u i32x4.ge_s i32x4.ge_u i32x4.add i32x4.sub i32x4.mul i32x4.min_s i32x4.min_u i32x4.max_s i32x4.max_u i32x4.dot_i16x8_s i32x4.extmul_low_i16x8_s i32x4.extmul_high_i16x8_s i32x4.extmul_low_i16x8_u i32x4.extmul_high_i16x8_u i64x2.eq i64x2.ne i64x2.lt_s i64x2.gt_s i64x2.le_s i64x2.ge_s i64x2.add i64x2.sub i64x2.mul i64x2.extmul_low_i32x4_s i64x2.extmul_high_i32x4_s i64x2.extmul_low_i32x4_u i64x2.extmul_high_i32x4_u f32x4.eq f32x4.ne f32x4.lt f32x4.gt f32x4.le f32x4.ge f32x4.add f32x4.sub f32x4.mul f32x4.div f32x4.min f32x4.max f32x4.pmin f32x4.pmax f64x2.eq f64x2.ne f64x2.lt f64x2.gt f64x2.le f64x2.ge f64x2.add f64x2.sub f64x2.mul f64x2.div f64x2.min f64x2.max f64x2.pmin f64x2.pmax",
    ),
    (
        "(local.set $v (OP (local.get $v) (local.get $b)))",
        "i8x16.shl i8x16.shr_s i8x16.shr_u i16x8.shl i16x8.shr_s i16x8.shr_u i32x4.shl i32x4.shr_s i32x4.shr_u i64x2.shl i64x2.shr_s i64x2.shr_u",
    ),
    (
        "(local.set $v (OP (i32.add (local.get $b) (i32x4.extract_lane 1 (local.get $v)))))",
        "i8x16.splat i16x8.splat i32x4.splat",
    ),
    ("(local.set $v (OP (i64x2.extract_lane 1 (local.get $v))))", "i64x2.splat"),
    ("(local.set $v (OP (f32x4.extract_lane 1 (local.get $v))))", "f32x4.splat"),
    ("(local.set $v (OP (f64x2.extract_lane 1 (local.get $v))))", "f64x2.splat"),
    (
        "(local.set $v (i8x16.replace_lane 1 (local.get $v) (OP 9 (local.get $v))))",
        "i8x16.extract_lane_s i8x16.extract_lane_u",
    ),
    (
        "(local.set $v (i16x8.replace_lane 1 (local.get $v) (OP 5 (local.get $v))))",
        "i16x8.extract_lane_s i16x8.extract_lane_u",
    ),
    (
        "(local.set $v (i32x4.replace_lane 1 (local.get $v) (OP 2 (local.get $v))))",
        "i32x4.extract_lane",
    ),
    (
        "(local.set $v (i64x2.replace_lane 1 (local.get $v) (OP 0 (local.get $v))))",
        "i64x2.extract_lane",
    ),
    (
        "(local.set $v (f32x4.replace_lane 1 (local.get $v) (OP 2 (local.get $v))))",
        "f32x4.extract_lane",
    ),
    (
        "(local.set $v (f64x2.replace_lane 1 (local.get $v) (OP 0 (local.get $v))))",
        "f64x2.extract_lane",
    ),
    (
        "(local.set $v (OP 0 5 31 7 8 2 1 19 4 3 2 1 0 9 30 11 (local.get $v) (local.get $w)))",
        "i8x16.shuffle",
    ),
    (
        "(local.set $a (i32.add (local.get $a) (OP (local.get $v)))) (local.set $v (i32x4.replace_lane 2 (local.get $v) (local.get $a)))",
        "v128.any_true i8x16.all_true i8x16.bitmask i16x8.all_true i16x8.bitmask i32x4.all_true i32x4.bitmask i64x2.all_true i64x2.bitmask",
    ),
    ("(local.set $v (OP (local.get $v) (local.get $w) (local.get $v)))", "v128.bitselect"),
];

/// Everything that is measured.
pub(crate) fn all() -> Vec<Kernel> {
    let mut all = Vec::new();
    for (operation, names) in OPERATORS {
        all.extend(names.split(' ').map(|name| {
            let kernel = Kernel::compute(name, 1, operation.replace("OP", name));
            kernel.tight()
        }));
    }
    all.extend(control_and_memory());
    all.extend(host());
    all.extend(misses_and_pages());
    all
}

/// Calls, branches, memory in the cache, bulk memory.
fn control_and_memory() -> Vec<Kernel> {
    vec![
        Kernel::compute("i64.xor i64.shl i64.shr", 6, "(local.set $x (i64.xor (local.get $x) (i64.shl (local.get $x) (i64.const 13))))
            (local.set $x (i64.xor (local.get $x) (i64.shr_u (local.get $x) (i64.const 7))))
            (local.set $x (i64.xor (local.get $x) (i64.shl (local.get $x) (i64.const 17))))"),
        Kernel::compute("call", 1, "(local.set $a (call $f (local.get $a)))")
            .with("(func $f (param i32) (result i32) (i32.add (local.get 0) (i32.const 1)))"),
        Kernel::compute("call_indirect", 1, "(local.set $a (call_indirect (type $t) (local.get $a) (i32.const 2)))").with(TABLE),
        Kernel::compute("call_indirect, unforeseen", 1, "(local.set $a (i32.add (i32.mul (local.get $a) (i32.const 1103515245)) (i32.const 12345)))
            (local.set $b (call_indirect (type $t) (local.get $b) (i32.and (i32.shr_u (local.get $a) (i32.const 20)) (i32.const 7))))").with(TABLE),
        Kernel::compute("br_if, foreseen", 1, "(block (br_if 0 (local.get $b)) (local.set $x (i64.const 3)))"),
        Kernel::compute("br_if, unforeseen", 1, "(local.set $a (i32.add (i32.mul (local.get $a) (i32.const 1103515245)) (i32.const 12345)))
            (block (br_if 0 (i32.and (i32.shr_u (local.get $a) (i32.const 20)) (i32.const 1))) (local.set $x (i64.mul (local.get $x) (local.get $y))) (i64.store (i32.const 4096) (local.get $x)))"),
        Kernel::compute("br_table, unforeseen", 1, "(local.set $a (i32.add (i32.mul (local.get $a) (i32.const 1103515245)) (i32.const 12345)))
            (block $out (block $c (block $b (block $a
                (br_table $a $b $c $out (i32.and (i32.shr_u (local.get $a) (i32.const 20)) (i32.const 3))))
                (local.set $x (i64.mul (local.get $x) (local.get $y))) (br $out))
                (local.set $x (i64.add (local.get $x) (local.get $y))) (br $out))
                (local.set $x (i64.xor (local.get $x) (local.get $y))))"),
        Kernel::compute("i64.load, 16 KiB", 1, "(local.set $a (i32.and (i32.add (local.get $a) (i32.const 8)) (i32.const 16376)))
            (local.set $x (i64.xor (local.get $x) (i64.load offset=4096 (local.get $a))))").tight(),
        Kernel::compute("v128.load, 16 KiB", 1, "(local.set $a (i32.and (i32.add (local.get $a) (i32.const 16)) (i32.const 16368)))
            (local.set $v (v128.xor (local.get $v) (v128.load offset=4096 (local.get $a))))").tight(),
        Kernel::compute("v128.load8x8_s, 16 KiB", 1, "(local.set $a (i32.and (i32.add (local.get $a) (i32.const 16)) (i32.const 16368)))
            (local.set $v (v128.xor (local.get $v) (v128.load8x8_s offset=4096 (local.get $a))))").tight(),
        Kernel::compute("v128.load8_lane, 16 KiB", 1, "(local.set $a (i32.and (i32.add (local.get $a) (i32.const 16)) (i32.const 16368)))
            (local.set $v (v128.load8_lane offset=4096 3 (local.get $a) (local.get $v)))").tight(),
        Kernel::compute("v128.store, 16 KiB", 1, "(local.set $a (i32.and (i32.add (local.get $a) (i32.const 16)) (i32.const 16368)))
            (v128.store offset=4096 (local.get $a) (local.get $v))").tight(),
        Kernel::compute("i32.load, one after another", 1, "(local.set $b (i32.load offset=4096 (local.get $b)))").with("(data (i32.const 4099) \"\\00\\00\\00\\00\")"),
        Kernel::compute("i64.store, 16 KiB", 1, "(local.set $a (i32.and (i32.add (local.get $a) (i32.const 8)) (i32.const 16376)))
            (i64.store offset=4096 (local.get $a) (local.get $x))").tight(),
        Kernel::compute("store, then load of it", 2, "(i32.store offset=4096 (i32.const 8) (local.get $a))
            (local.set $a (i32.add (local.get $b) (i32.load offset=4096 (i32.const 8))))"),
        Kernel::compute("global.get, global.set", 2, "(global.set $g (i32.add (global.get $g) (i32.const 1)))").with("(global $g (mut i32) (i32.const 0))"),
        Kernel::compute("memory.copy, 16 B", 1, "(memory.copy (i32.const 4096) (i32.const 70000) (i32.const 16))"),
        Kernel::compute("memory.copy, 3 B, unforeseen", 1, "(memory.copy (i32.const 4096) (i32.const 70000) (local.get $b))"),
        Kernel::compute("memory.fill, 3 B, unforeseen", 1, "(memory.fill (i32.const 4096) (i32.const 7) (local.get $b))"),
        Kernel::compute("table.copy, 1", 1, "(table.copy (i32.const 0) (i32.const 4) (i32.const 1))").with(TABLE),
        Kernel::compute("ref.func", 1, "(table.set (i32.const 1) (ref.func $f2))").with(TABLE),
        Kernel::compute("memory.copy, 4 KiB", 1, "(memory.copy (i32.const 4096) (i32.const 70000) (i32.const 4096))"),
        Kernel::compute("memory.copy, 1 MiB", 1, "(memory.copy (i32.const 4096) (i32.const 1114112) (i32.const 1048576))").once(1 << 16),
        Kernel::compute("memory.fill, 4 KiB", 1, "(memory.fill (i32.const 4096) (i32.const 7) (i32.const 4096))"),
        Kernel::compute("memory.fill, 1 MiB", 1, "(memory.fill (i32.const 4096) (i32.const 7) (i32.const 1048576))").once(1 << 16),
        Kernel::compute("memory.size", 1, "(local.set $a (i32.add (local.get $a) (memory.size)))"),
        Kernel::compute("table.get, table.set", 2, "(table.set (i32.const 1) (table.get (i32.const 0)))").with(TABLE),
        Kernel::compute("memory.grow by none", 1, "(drop (memory.grow (i32.const 0)))"),
    ]
}

/// Everything the host does for a guest.
fn host() -> Vec<Kernel> {
    vec![
        Kernel::host("sched_yield", wasi!("sched_yield", "(result i32)"), "(drop (call $host))"),
        Kernel::host("clock_time_get", wasi!("clock_time_get", "(param i32 i64 i32) (result i32)"), "(drop (call $host (i32.const 1) (i64.const 1) (i32.const 4096)))"),
        Kernel::host("random_get, 16 B", wasi!("random_get", "(param i32 i32) (result i32)"), "(drop (call $host (i32.const 4096) (i32.const 16)))"),
        Kernel::host("random_get, 64 KiB", wasi!("random_get", "(param i32 i32) (result i32)"), "(drop (call $host (i32.const 4096) (i32.const 65536)))"),
        Kernel::host("fd_fdstat_get", wasi!("fd_fdstat_get", "(param i32 i32) (result i32)"), "(drop (call $host (i32.const 1) (i32.const 4096)))"),
        Kernel::host("fd_write, refused", wasi!("fd_write", "(param i32 i32 i32 i32) (result i32)"), "(drop (call $host (i32.const 9) (i32.const 4096) (i32.const 1) (i32.const 8192)))"),
        Kernel::host("fd_write, 64 B", wasi!("fd_write", "(param i32 i32 i32 i32) (result i32)"), "(drop (call $host (i32.const 1) (i32.const 4096) (i32.const 1) (i32.const 8192)))")
            .with("(data (i32.const 4096) \"\\00\\20\\00\\00\\40\\00\\00\\00\")"),
        Kernel::host("path_open, refused", wasi!("path_open", "(param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)"),
            "(drop (call $host (i32.const 3) (i32.const 0) (i32.const 4096) (i32.const 8) (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 8192)))"),
        Kernel::host("context", cell!("context", "(param i32)"), "(call $host (i32.const 4096))"),
        Kernel::host("fuel_left", cell!("fuel_left", "(result i64)"), "(local.set $x (call $host))"),
        Kernel::host("log, 64 B", cell!("log", "(param i32 i32 i32)"), "(call $host (i32.const 3) (i32.const 4096) (i32.const 64))"),
        Kernel::host("log, 4 KiB", cell!("log", "(param i32 i32 i32)"), "(call $host (i32.const 3) (i32.const 4096) (i32.const 4096))"),
        Kernel::host("kv_delete", cell!("kv_delete", "(param i32 i32) (result i32)"), "(drop (call $host (i32.const 4096) (i32.const 8)))"),
        Kernel::host("kv_get", cell!("kv_get", "(param i32 i32) (result i64)"), "(local.set $x (call $host (i32.const 4096) (i32.const 8)))"),
        Kernel::host("kv_get, one in a call", cell!("kv_get", "(param i32 i32) (result i64)"), "(local.set $x (call $host (i32.const 4096) (i32.const 8)))").once(1),
        Kernel::host("kv_get, 64 KiB", cell_and_set!("kv_get", "(param i32 i32) (result i64)"),
            "(if (i32.eqz (local.get $i)) (then (drop (call $set (i32.const 4096) (i32.const 8) (i32.const 8192) (i32.const 65536)))))
            (local.set $x (call $host (i32.const 4096) (i32.const 8)))").once(512),
        Kernel::host("kv_set, 64 B", cell!("kv_set", "(param i32 i32 i32 i32) (result i32)"), "(i32.store (i32.const 4096) (local.get $i)) (drop (call $host (i32.const 4096) (i32.const 8) (i32.const 8192) (i32.const 64)))").once(256),
        Kernel::host("kv_set, one in a call", cell!("kv_set", "(param i32 i32 i32 i32) (result i32)"), "(drop (call $host (i32.const 4096) (i32.const 8) (i32.const 8192) (i32.const 64)))").once(1),
        Kernel::host("kv_set, 64 KiB", cell!("kv_set", "(param i32 i32 i32 i32) (result i32)"), "(i32.store (i32.const 4096) (local.get $i)) (drop (call $host (i32.const 4096) (i32.const 8) (i32.const 8192) (i32.const 65536)))").once(64),
        Kernel::host("call of another cell, 64 B", cell!("call", "(param i32 i32 i32 i32 i32 i32 i32 i32 i64) (result i64)"),
            "(local.set $x (call $host (i32.const 4096) (i32.const 5) (i32.const 4104) (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 8192) (i32.const 64) (i64.const 1000000)))")
            .with("(data (i32.const 4096) \"other\\00\\00\\00echo\")"),
        Kernel::host("call of another cell, 64 KiB", cell!("call", "(param i32 i32 i32 i32 i32 i32 i32 i32 i64) (result i64)"),
            "(local.set $x (call $host (i32.const 4096) (i32.const 5) (i32.const 4104) (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 8192) (i32.const 65536) (i64.const 1000000)))")
            .with("(data (i32.const 4096) \"other\\00\\00\\00echo\")"),
    ]
}

/// What no table of weights can see.
fn misses_and_pages() -> Vec<Kernel> {
    vec![
        Kernel::new(Kind::Miss, "i32.load, ring of 56 MiB", 1, "(local.set $b (i32.load offset=4096 (local.get $b)))").pages(930).with(RING),
        Kernel::new(Kind::Miss, "i32.load, anywhere in 32 MiB", 1, "(local.set $a (i32.add (i32.mul (local.get $a) (i32.const 1103515245)) (i32.const 12345)))
            (local.set $b (i32.add (local.get $b) (i32.load offset=4096 (i32.and (i32.shr_u (local.get $a) (i32.const 4)) (i32.const 33554424)))))").pages(930).with(RING),
        Kernel::new(Kind::Miss, "i32.store, anywhere in 32 MiB", 1, "(local.set $a (i32.add (i32.mul (local.get $a) (i32.const 1103515245)) (i32.const 12345)))
            (i32.store offset=4096 (i32.and (i32.shr_u (local.get $a) (i32.const 4)) (i32.const 33554424)) (local.get $a))").pages(930).with(RING),
        Kernel::new(Kind::Miss, "memory.copy, 16 MiB", 1, "(memory.copy (i32.const 4096) (i32.const 20000000) (i32.const 16777216))").pages(930).once(64).with(RING),
        Kernel::new(Kind::Page, "memory.grow, untouched", 1, "(drop (memory.grow (i32.const 1)))").once(900),
        Kernel::new(Kind::Page, "memory.grow, touched", 1, "(local.set $a (i32.shl (memory.grow (i32.const 1)) (i32.const 16)))
            (i32.store (local.get $a) (i32.const 1)) (i32.store offset=4096 (local.get $a) (i32.const 1)) (i32.store offset=8192 (local.get $a) (i32.const 1)) (i32.store offset=12288 (local.get $a) (i32.const 1))
            (i32.store offset=16384 (local.get $a) (i32.const 1)) (i32.store offset=20480 (local.get $a) (i32.const 1)) (i32.store offset=24576 (local.get $a) (i32.const 1)) (i32.store offset=28672 (local.get $a) (i32.const 1))
            (i32.store offset=32768 (local.get $a) (i32.const 1)) (i32.store offset=36864 (local.get $a) (i32.const 1)) (i32.store offset=40960 (local.get $a) (i32.const 1)) (i32.store offset=45056 (local.get $a) (i32.const 1))
            (i32.store offset=49152 (local.get $a) (i32.const 1)) (i32.store offset=53248 (local.get $a) (i32.const 1)) (i32.store offset=57344 (local.get $a) (i32.const 1)) (i32.store offset=61440 (local.get $a) (i32.const 1))").once(900),
        Kernel::new(Kind::Page, "4 KiB of a fresh instance", 1, "(i32.store offset=65536 (i32.shl (local.get $i) (i32.const 12)) (i32.const 1))").pages(930).once(14_000).fresh(),
    ]
}
