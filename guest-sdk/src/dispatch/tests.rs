use super::*;
use crate as cell_guest;
use crate::testing::Archive;
use crate::{
    Archived, CallError, Fuel, Level, NotThisType, QuotaExceeded, Status, receptor, signal,
    signal_receptor,
};

#[signal]
enum Shape {
    Dot,
    Circle { r: f32 },
    Poly(Vec<(i8, i8)>),
}

signal_receptor! {
    name: area,
    /// What to measure.
    input: Measure { shapes: Vec<Shape>, scale: Option<u64> },
    output: Area { text: String },
}

#[receptor]
fn area(input: &ArchivedMeasure, cx: &mut Context) -> Result<Area, Reject> {
    crate::info!("{} shapes", input.shapes.len());
    if input.shapes.is_empty() {
        return Err(Reject::new(3, "no shapes"));
    }
    cx.state().set_as(b"scale", &input.scale.as_ref().map(|scale| scale.to_native()))?;
    Ok(Area { text: format!("{:?}", input.shapes) })
}

signal_receptor! { name: nothing, input: (), output: () }

#[receptor]
fn nothing(_: &()) -> Result<(), Reject> {
    Ok(())
}

struct AreaHandler;

impl Handle for AreaHandler {
    type Receptor = area::Receptor;

    fn handle(input: &Archived<Measure>, cx: &mut Context) -> Result<Area, Reject> {
        area(input, cx)
    }
}

struct NothingHandler;

impl Handle for NothingHandler {
    type Receptor = nothing::Receptor;

    fn handle(input: &(), _: &mut Context) -> Result<(), Reject> {
        nothing(input)
    }
}

static AREA: Entry = Entry::of::<AreaHandler>("cell_a::x");
static NOTHING: Entry = Entry::of::<NothingHandler>("cell_a");

#[test]
fn the_schema_holds_every_type() {
    assert_eq!(
        area::Receptor::SCHEMA,
        "receptor area(Measure) -> Area\n\
         struct Measure { shapes: Vec<Shape>, scale: Option<u64> }\n\
         enum Shape { Dot, Circle { r: f32 }, Poly(Vec<(i8, i8)>) }\n\
         struct Area { text: String }\n"
    );
    assert_eq!(nothing::Receptor::SCHEMA, "receptor nothing(()) -> ()\n");
}

#[test]
fn archives_go_in_and_out() {
    let cx = Context::for_test();
    let input = Measure {
        shapes: vec![Shape::Dot, Shape::Circle { r: 0.5 }, Shape::Poly(vec![(1, -1)])],
        scale: None,
    };
    let Answer::Archive(reply) = AREA.receive(Archive::of(&input).as_bytes()) else {
        panic!("no reply")
    };
    let reply = cell_abi::schema::access::<Area>(&reply).unwrap();
    assert_eq!(reply.text, "[Dot, Circle { r: 0.5 }, Poly([ArchivedTuple2(1, -1)])]");
    assert_eq!(cx.logged(), [(Level::Info, "3 shapes".to_owned())]);

    assert!(matches!(AREA.receive(&[]), Answer::BadRequest(None)));
    let Answer::Archive(reply) = NOTHING.receive(&[]) else { panic!("no reply") };
    assert!(reply.is_empty());
}

#[track_caller]
fn check_json(request: &str, expect: Result<&str, (Option<u32>, &str)>) {
    let answer = AREA.receive_json(request.as_bytes());
    let found = match &answer {
        Answer::Json(reply) => Ok(std::str::from_utf8(reply).unwrap()),
        Answer::Reject(reject) => Err((Some(reject.code), reject.message.as_str())),
        Answer::BadRequest(Some(detail)) => Err((None, detail.as_str())),
        other => panic!("{other:?}"),
    };
    assert_eq!(found, expect);
}

#[test]
fn json_goes_in_and_out() {
    let _cx = Context::for_test();
    check_json(
        r#"{"shapes":["Dot",{"Circle":{"r":2}}]}"#,
        Ok(r#"{"text":"[Dot, Circle { r: 2.0 }]"}"#),
    );
    check_json(r#"{"shapes":[],"scale":7}"#, Err((Some(3), "no shapes")));
    check_json("{}", Err((None, "missing field `shapes` at line 1 column 2")));
    check_json(
        r#"{"shape":[]}"#,
        Err((None, "unknown field `shape`, expected `shapes` or `scale` at line 1 column 8")),
    );
    check_json("", Err((None, "EOF while parsing a value at line 1 column 0")));
}

#[test]
fn numbers_follow_the_names_and_not_the_order_of_entry() {
    for entries in [[&AREA, &NOTHING], [&NOTHING, &AREA]] {
        let mut table = Table::new();
        for entry in entries {
            table.insert(entry).unwrap();
        }
        let names = [0, 1, 2].map(|number| table.find(number).map(|entry| entry.name));
        assert_eq!(names, [Some("area"), Some("nothing"), None]);
        assert!(table.find(usize::MAX).is_none());
    }
}

/// A cell that was linked into the module of its caller answered calls that were meant for the
/// caller: such a module must not start.
#[test]
fn a_module_holds_one_crate_and_one_handler_for_each_name() {
    static OTHER_CRATE: Entry = Entry::of::<NothingHandler>("cell_b");
    static OTHER_MODULE: Entry = Entry::of::<AreaHandler>("cell_a::y");
    let mut table = Table::new();
    table.insert(&AREA).unwrap();
    assert_eq!(
        table.insert(&OTHER_CRATE),
        Err("this module holds receptors of two crates, `cell_a` and `cell_b`: \
             depend on the other cell's interface crate, not on the cell"
            .to_owned())
    );
    assert_eq!(
        table.insert(&OTHER_MODULE),
        Err("the receptor `area` has two handlers, in `cell_a::x` and in `cell_a::y`".to_owned())
    );
}

#[test]
fn state_keeps_values_within_its_quota() {
    let mut cx = Context::for_test().with_state_bytes_max(24);
    let mut state = cx.state();
    assert_eq!(state.get(b"a"), None);
    assert_eq!(state.get_as::<u64>(b"a"), Ok(None));
    assert_eq!(state.set(b"a", b"xyz"), Ok(()));
    assert_eq!(state.get(b"a"), Some(b"xyz".to_vec()));
    assert_eq!(state.get_as::<String>(b"a"), Err(NotThisType));
    assert_eq!(state.set_as(b"b", &7u64), Ok(()));
    assert_eq!(state.get_as(b"b"), Ok(Some(7u64)));
    assert_eq!(state.set(b"c", &[0; 12]), Err(QuotaExceeded));
    assert_eq!(state.set(b"a", &[0; 14]), Ok(()));
    assert!(state.delete(b"a"));
    assert!(!state.delete(b"a"));
    assert_eq!(state.get(b"a"), None);
}

#[test]
fn the_context_is_the_tests_own() {
    let cx = Context::for_test()
        .with_caller(crate::AccountId::from_bytes([7; 32]))
        .with_started_at_ns(5)
        .with_fuel_left(Fuel(9));
    assert_eq!(cx.caller().as_bytes(), &[7; 32]);
    assert_eq!((cx.started_at_ns(), cx.depth(), cx.fuel_left()), (5, 0, Fuel(9)));
    cx.log(Level::Warn, "careful");
    assert_eq!(cx.logged(), [(Level::Warn, "careful".to_owned())]);
}

#[test]
fn calls_to_other_cells_give_an_answer_or_say_why_not() {
    let _cx = Context::for_test()
        .with_cell::<nothing::Receptor>("nothing", |()| Err(Reject::new(2, "no")));
    assert_eq!(crate::call_as!(nothing, ()), Err(CallError::Rejected(Reject::new(2, "no"))));
    let message = "the test answers no call of elsewhere.nothing".to_owned();
    assert_eq!(
        cell_guest::call_as!("elsewhere", nothing, ()),
        Err(CallError::Failed { status: Status::UnknownCell, message })
    );
    let _cx = Context::for_test().with_cell::<nothing::Receptor>("elsewhere", |()| Ok(()));
    assert_eq!(nothing::Remote::new("elsewhere").with_fuel(Fuel(3)).call(&()), Ok(()));
}
