//! Class G: ways out of the one directory that a program was given, and ways to change what it may only read.
//!
//! Every row also fails if the secret beside the directory is printed or changed. The numbers are
//! errnos of WASI: 8 badf, 25 ilseq, 28 inval, 32 loop, 44 noent, 54 notdir, 63 perm, 69 rofs, 76 notcapable.

use std::fs;
use std::path::Path;

use cell_host::price::{MEMORY_PAGE, RANDOM_BYTE, START};

use super::guest::program;
use super::job::{Job, job};
use super::{Bill, Row};

pub(super) fn rows() -> Vec<Row> {
    [paths(), made(), changed(), read_only(), odd(), outside()].into_iter().flatten().collect()
}

fn row(class: &'static str, name: &'static str, job: Job, answer: &'static str) -> Row {
    Row::new(class, name, job, answer, Bill::Within(50_000, 20_000_000))
}

/// Opens a path, following links or not, reads it, prints it, and writes to it.
fn take(path: &str, follow: u32) -> String {
    format!(
        "(call $must (call $path_open #3 #{follow} '{path}' #0 ##0x42 ##0x42 #0 #64))
        (i32.store #0 #1024) (i32.store #4 #4096)
        (call $must (call $fd_read (i32.load #64) #0 #1 #16))
        (i32.store #4 (i32.load #16))
        (call $must (call $fd_write #1 #0 #1 #16))
        (call $proc_exit (call $fd_pwrite (i32.load #64) #0 #1 ##0 #16))"
    )
}

fn paths() -> Vec<Row> {
    let path = |name, path: &str, answer| {
        row("G1", name, job(program(&take(path, 1))).directory(), answer)
    };
    vec![
        path("../outside.txt", "../outside.txt", "exit 63"),
        path("sub/../../outside.txt", "sub/../../outside.txt", "exit 63"),
        path("an absolute path", "/etc/passwd", "exit 63"),
        path("its own environment in /proc", "/proc/self/environ", "exit 63"),
        path("a link out, relative", "up", "exit 63"),
        path("a link out, relative, with a slash behind it", "up/", "exit 63"),
        path("a link out, absolute", "absolute", "exit 63"),
        path("through a link to the directory above", "updir/file", "exit 63"),
        path("through a link, with a slash and a dot", "updir/./file", "exit 63"),
        path("through a link to the root of everything", "root/etc/passwd", "exit 63"),
        path("a link to itself", "loop", "exit 32"),
        path("the parent of the directory", "..", "exit 63"),
        path("an empty path", "", "exit 44"),
        path("a name with a NUL in it", "file\\00/../../outside.txt", "exit 28"),
        path("a name that is no text", "\\ff\\fe", "exit 25"),
        path("a file as a directory", "file/../../outside.txt", "exit 54"),
        row(
            "G2",
            "a drive of another system",
            job(program(&take("C:\\5c..\\5coutside.txt", 1))).directory(),
            "exit 44",
        ),
        row(
            "G3",
            "a device of another system",
            job(program(&take("NUL", 1))).directory(),
            "exit 44",
        ),
        path("what it may read", "file", "exit 0, 8 bytes out"),
    ]
}

fn made() -> Vec<Row> {
    let made = |name, steps: &str, answer| row("G1", name, job(program(steps)).directory(), answer);
    let then = |first: &str, path: &str| format!("{first} {}", take(path, 1));
    vec![
        made(
            "a link out that it makes itself",
            &then("(drop (call $path_symlink '../outside.txt' #3 'mine'))", "mine"),
            "exit 63",
        ),
        made(
            "an absolute link that it makes itself",
            "(call $proc_exit (call $path_symlink '/etc/passwd' #3 'mine'))",
            "exit 63",
        ),
        made(
            "a hard link to what a link points at",
            &then("(drop (call $path_link #3 #1 'up' #3 'mine'))", "mine"),
            "exit 44",
        ),
        made(
            "a hard link to what is outside",
            "(call $proc_exit (call $path_link #3 #0 '../outside.txt' #3 'mine'))",
            "exit 63",
        ),
        made(
            "a link out, renamed with a slash behind it",
            &then("(drop (call $path_rename #3 'up/' #3 'mine/'))", "mine/"),
            "exit 44",
        ),
    ]
}

fn changed() -> Vec<Row> {
    let made = |name, steps: &str, answer| row("G1", name, job(program(steps)).directory(), answer);
    vec![
        made(
            "a file renamed to the outside",
            "(call $proc_exit (call $path_rename #3 'file' #3 '../outside.txt'))",
            "exit 63",
        ),
        made(
            "a file renamed through a link",
            "(call $proc_exit (call $path_rename #3 'file' #3 'updir/file'))",
            "exit 63",
        ),
        made(
            "a directory made through a link",
            "(call $proc_exit (call $path_create_directory #3 'updir/new'))",
            "exit 63",
        ),
        made(
            "a file removed through a link",
            "(call $proc_exit (call $path_unlink_file #3 'updir/file'))",
            "exit 63",
        ),
        made(
            "where a link points",
            "(call $must (call $path_readlink #3 'absolute' #1024 #4096 #0)) (call $proc_exit #0)",
            "exit 63",
        ),
        made(
            "times of what is outside",
            "(call $proc_exit (call $path_filestat_set_times #3 #1 'up' ##0 ##0 #5))",
            "exit 63",
        ),
        made(
            "a size of what is outside",
            "(call $proc_exit (call $path_filestat_get #3 #1 'up' #64))",
            "exit 63",
        ),
        made(
            "a file cut through a link",
            "(call $proc_exit (call $path_open #3 #1 'up' #8 ##0x40 ##0 #0 #64))",
            "exit 63",
        ),
    ]
}

/// What must be in the directory still, when nothing in it may be changed.
fn unchanged(inside: &Path) -> String {
    let names = fs::read_dir(inside).unwrap().count();
    let text = fs::read_to_string(inside.join("file")).unwrap_or_default();
    if names == 7 && text == "harmless" {
        ", unchanged".into()
    } else {
        format!(", {names} names, {text:?}")
    }
}

fn read_only() -> Vec<Row> {
    let read_only = |name, call: &str, answer| {
        row(
            "G4",
            name,
            job(program(&format!("(call $proc_exit {call})"))).read_only().inspect(unchanged),
            answer,
        )
    };
    vec![
        read_only(
            "a file that may be read, cut",
            "(call $path_open #3 #0 'file' #8 ##2 ##0 #0 #64)",
            "exit 63, unchanged",
        ),
        read_only(
            "a file that may be read, opened to be written",
            "(call $path_open #3 #0 'file' #0 ##0x40 ##0 #0 #64)",
            "exit 63, unchanged",
        ),
        read_only(
            "a file made where nothing may be",
            "(call $path_open #3 #0 'new' #1 ##2 ##0 #0 #64)",
            "exit 63, unchanged",
        ),
        read_only(
            "a file removed where nothing may be",
            "(call $path_unlink_file #3 'file')",
            "exit 63, unchanged",
        ),
        read_only(
            "a file renamed where nothing may be",
            "(call $path_rename #3 'file' #3 'new')",
            "exit 63, unchanged",
        ),
        read_only(
            "a hard link where nothing may be",
            "(call $path_link #3 #0 'file' #3 'new')",
            "exit 63, unchanged",
        ),
        read_only(
            "a link where nothing may be",
            "(call $path_symlink 'file' #3 'new')",
            "exit 63, unchanged",
        ),
        read_only(
            "a directory where nothing may be",
            "(call $path_create_directory #3 'new')",
            "exit 63, unchanged",
        ),
        read_only(
            "times set where nothing may be",
            "(call $path_filestat_set_times #3 #0 'file' ##0 ##0 #5)",
            "exit 63, unchanged",
        ),
        row(
            "G4",
            "a file that may be read, given another size",
            job(program(
                "(call $must (call $path_open #3 #0 'file' #0 ##0x2 ##0 #0 #64))
                (call $proc_exit (call $fd_filestat_set_size (i32.load #64) ##0))",
            ))
            .read_only()
            .inspect(unchanged),
            "exit 63, unchanged",
        ),
    ]
}

fn odd() -> Vec<Row> {
    let odd = |class, name, steps: &str, answer| {
        row(class, name, job(program(steps)).directory(), answer)
    };
    vec![
        odd(
            "G5",
            "what fd_readdir leaves behind its end",
            // Counts bytes past what was written that are not zero.
            "(call $must (call $fd_readdir #3 #1024 #30000 ##0 #16)) (local.set $n (i32.add #1024 (i32.load #16)))
            (loop $again
                (if (i32.load8_u (local.get $n)) (then (call $proc_exit #99)))
                (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) #1)) #31024)))
            (call $proc_exit #0)",
            "exit 0",
        ),
        odd("G5", "fd_readdir from a cookie of 2^64-1", "(call $proc_exit (call $fd_readdir #3 #1024 #1000 ##-1 #16))", "exit 0"),
        odd("G6", "times of 2^64-1", "(call $proc_exit (call $path_filestat_set_times #3 #0 'file' ##-1 ##-1 #5))", "exit 0"),
        odd("G6", "times of now and then at once", "(call $proc_exit (call $path_filestat_set_times #3 #0 'file' ##-1 ##-1 #15))", "exit 28"),
        odd("G7", "fd_renumber of the directory onto standard output", "(call $must (call $fd_renumber #3 #1)) (call $proc_exit (call $fd_renumber #3 #1))", "exit 8"),
        odd("G7", "fd_renumber of the directory onto itself", "(call $must (call $fd_renumber #3 #3)) (call $proc_exit (call $fd_close #3))", "exit 0"),
        odd("G7", "the directory closed and used", "(call $must (call $fd_close #3)) (call $proc_exit (call $path_open #3 #0 'file' #0 ##2 ##0 #0 #64))", "exit 8"),
        odd("G7", "a seek before the start", "(call $must (call $path_open #3 #0 'file' #0 ##0x26 ##0 #0 #64)) (call $proc_exit (call $fd_seek (i32.load #64) ##-1 #0 #16))", "exit 28"),
        odd("G7", "a read at 2^64-1", "(call $must (call $path_open #3 #0 'file' #0 ##0x26 ##0 #0 #64)) (i32.store #0 #1024) (i32.store #4 #8) (call $proc_exit (call $fd_pread (i32.load #64) #0 #1 ##-1 #16))", "exit 28"),
        odd("F8", "a program that exits with 2^32-1", "(call $proc_exit #-1)", "exit 4294967295"),
        odd("F8", "a program that exits with 126", "(call $proc_exit #126)", "exit 126"),
    ]
}

fn outside() -> Vec<Row> {
    let alone = |class, name, steps: &str, answer| row(class, name, job(program(steps)), answer);
    vec![
        alone("G1", "a path without a directory", "(call $proc_exit (call $path_open #3 #1 '/etc/passwd' #0 ##2 ##0 #0 #64))", "exit 8"),
        alone("G1", "a path at standard input", "(call $proc_exit (call $path_open #0 #1 'etc/passwd' #0 ##2 ##0 #0 #64))", "exit 8"),
        alone("G4", "the environment of whoever runs it", "(call $must (call $environ_sizes_get #64 #68)) (call $proc_exit (i32.load #64))", "exit 0"),
        alone("G8", "a socket that it was not given", "(call $proc_exit (call $sock_accept #3 #0 #64))", "exit 8"),
        Row::new("A1", "a program without end", job(program("(loop $again (br $again))")).fuel(50_000_000), "OutOfFuel", Bill::Limit),
        Row::new("A9", "a program that sleeps for 584 years", job(program(&format!("(drop {})", super::cpu::SLEEP))).options(&["--timeout", "0.3"]), "TimedOut", Bill::Within(START, START + 8 * MEMORY_PAGE)),
        Row::new("A14", "a program whose start alone is too dear", job(program("nop")).fuel(1_000), "exit code 122: *", Bill::Nothing),
        Row::new("F1", "a program that recurses without end", job(program("(call $f)").replace("(global $fd", "(func $f (call $f) (call $f)) (global $fd")), "Trapped: *call stack exhausted*", Bill::Within(50_000, 10_000_000)),
        Row::new("D1", "a program that takes all memory", job(program("(loop $again (br_if $again (i32.ne (memory.grow #16) #-1))) (call $proc_exit (i32.shr_u (memory.size) #4))")).options(&["--memory", "32"]), "exit 31", Bill::Within(496 * MEMORY_PAGE, 520 * MEMORY_PAGE)),
        Row::new("D5", "random_get of more than a program may have", job(program("(call $proc_exit (call $random_get #0 #1048577))")), "Trapped: *requested len 1048577*", Bill::Within((1 << 20) * RANDOM_BYTE, (1 << 20) * RANDOM_BYTE + 8 * MEMORY_PAGE)),
    ]
}
