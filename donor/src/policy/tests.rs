//! Every rule as a row, and what must hold whatever happens.

use proptest::prelude::*;

use super::*;
use crate::schedule::Weekday;

/// A machine that is ready: nobody there, cool, idle, on mains.
fn ready() -> Signals {
    Signals {
        input_idle_s: Some(400),
        power: Some(Power { on_battery: false, percent: Some(80) }),
        temperature_c: Some(50.0),
        others_cores: Some(0.1),
        cores: Some(4),
        memory_available_mb: Some(8000),
        disk_free_mb: Some(50_000),
        ..Signals::default()
    }
}

/// `60 temp=91 zoom`: a minute after the start, with what differs from [`ready`]. The clock on the wall says
/// Monday noon, or what `mon:18:00` says.
fn step(text: &str) -> (Signals, Moment) {
    let mut words = text.split_whitespace();
    let seconds: u64 = words.next().unwrap().parse().unwrap();
    let mut now =
        Moment { monotonic_ms: seconds * 1000, weekday: Weekday::Mon, minute_of_day: 12 * 60 };
    let mut signals = ready();
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match name {
            "paused" => signals.owner_paused = true,
            "at" => now.minute_of_day = value.parse().unwrap(),
            "sat" => now.weekday = Weekday::Sat,
            "idle" => signals.input_idle_s = value.parse().ok(),
            "desktop" => signals.power = None,
            "battery" => {
                signals.power = Some(Power { on_battery: true, percent: value.parse().ok() });
            }
            "temp" => signals.temperature_c = value.parse().ok(),
            "load" => signals.others_cores = value.parse().ok(),
            "cores" => signals.cores = value.parse().ok(),
            "memory" => signals.memory_available_mb = value.parse().ok(),
            "disk" => signals.disk_free_mb = value.parse().ok(),
            program => assert!(signals.running.insert(program.into())),
        }
    }
    (signals, now)
}

/// Steps are parted by `;`. What is expected is what the last one leads to: `working`, or the reason.
#[track_caller]
fn check(settings: &str, steps: &str, expect: &str) {
    let settings = Settings::parse(settings).unwrap();
    let (mut decision, mut memory) = (Decision::Work, Memory::default());
    for text in steps.split(';') {
        let (signals, now) = step(text);
        (decision, memory) = decide(&settings, &signals, &memory, now);
    }
    let shown = decision.to_string();
    assert_eq!(shown.strip_prefix("paused: ").unwrap_or(&shown), expect, "{steps}");
}

const IN_USE: &str = "you are using the computer";
const BATTERY: &str = "on_battery = true";
const NIGHT: &str = "schedule = ['mon-fri 18:00-08:00']";

#[test]
fn the_owner_and_the_schedule() {
    check("", "0", "working");
    check("", "0 paused", "you paused it");
    check("", "0; 1 paused", "you paused it");
    check("", "0 paused; 1", "working");
    check(NIGHT, "0", "outside the schedule until 18:00");
    check(NIGHT, "0 at=1079", "outside the schedule until 18:00");
    check(NIGHT, "0 at=1080", "working");
    check(NIGHT, "0 at=1079; 1 at=1080", "working");
    check(NIGHT, "0 at=1080; 1 at=480", "outside the schedule until 18:00");
    check(NIGHT, "0 sat at=479", "working");
    check(NIGHT, "0 sat at=480", "outside the schedule until mon 18:00");
    check(NIGHT, "0 paused", "you paused it");
    check(NIGHT, "0 battery=90 idle=0", "outside the schedule until 18:00");
}

#[test]
fn the_battery() {
    check("", "0 battery=100", "on battery");
    check("", "0 desktop", "working");
    check("", "0; 1 battery=100", "on battery");
    check("", "0 battery=100; 1", "on battery");
    check("", "0 battery=100; 1; 10", "on battery");
    check("", "0 battery=100; 1; 11", "working");
    check("", "0 battery=100; 1; 5 battery=100; 6; 15", "on battery");
    check("", "0 battery=100 idle=0", "on battery");
    check(BATTERY, "0 battery=50", "working");
    check(BATTERY, "0 battery=49", "on battery, which is at 49 %");
    check(BATTERY, "0 battery=?", "on battery");
    check(BATTERY, "0 battery=49; 1 battery=54; 99 battery=54", "on battery, which is at 54 %");
    check(BATTERY, "0 battery=49; 1 battery=55; 11 battery=55", "working");
    check(BATTERY, "0 battery=49; 1; 11", "working");
    check("on_battery = true\nbattery_percent_min = 100", "0 battery=100", "working");
    check(
        "on_battery = true\nbattery_percent_min = 100",
        "0 battery=99; 1; 11 battery=100",
        "working",
    );
    check("on_battery = true\nbattery_percent_min = 0", "0 battery=0", "working");
}

#[test]
fn input_and_programs() {
    check("", "0 idle=0", IN_USE);
    check("", "0 idle=299", IN_USE);
    check("", "0 idle=300", "working");
    check("", "0; 1 idle=0", IN_USE);
    check("", "0 idle=0; 299 idle=299", IN_USE);
    check("", "0 idle=0; 300 idle=300; 309 idle=309", IN_USE);
    check("", "0 idle=0; 300 idle=300; 310 idle=310", "working");
    check("", "0 idle=0; 300 idle=300; 305 idle=1; 310 idle=6", IN_USE);
    check("idle_s = 60", "0 idle=60", "working");
    check("only_when_idle = false", "0 idle=0", "working");
    check("only_when_idle = false", "0 idle=?", "working");
    let unknown =
        "no input device is seen; say only_when_idle = false on a machine that nobody sits at";
    check("", "0 idle=?", unknown);
    check("", "0 idle=? zoom", unknown);
    check("", "0 zoom", "zoom is running");
    check("", "0 zoom; 1; 10", "zoom is running");
    check("", "0 zoom; 1; 11", "working");
    check("", "0 zoom; 1 steam", "steam is running");
    check("", "0 zoom temp=91", "zoom is running");
}

#[test]
fn heat_and_load() {
    check("", "0 temp=84.9", "working");
    check("", "0 temp=85", "the processor is at 85 °C");
    check("", "0 temp=?", "working");
    check("", "0 temp=nan", "working");
    check("", "0 temp=91; 1 temp=82", "the processor is at 82 °C");
    check("", "0 temp=91; 1 temp=80; 99 temp=80", "the processor is at 80 °C");
    check("", "0 temp=91; 1 temp=79; 60 temp=79", "the processor is at 91 °C");
    check("", "0 temp=91; 1 temp=79; 61 temp=79", "working");
    check("", "0 temp=91; 1 temp=79; 30 temp=81; 61 temp=79", "the processor is at 81 °C");
    check("temperature_c_max = 60", "0 temp=60", "the processor is at 60 °C");
    check("", "0 temp=91 load=3", "the processor is at 91 °C");
    check("", "0 load=3", "working");
    check("", "0 load=3; 9 load=3", "working");
    check("", "0 load=3; 10 load=2.31", "other programs are using 2.3 cores");
    check("", "0 load=2; 10 load=2", "working");
    check("", "0 load=3; 5; 10 load=3", "working");
    check("", "0 load=3 cores=8; 10 load=3 cores=8", "working");
    check("", "0 load=3 cores=?; 10 load=3 cores=?", "working");
    check("", "0 load=?; 10 load=?", "working");
    check(
        "others_cores_max = 1",
        "0 load=2 cores=?; 10 load=2",
        "other programs are using 2.0 cores",
    );
    check(
        "",
        "0 load=3; 10 load=3; 11 load=1.5; 99 load=1.5",
        "other programs are using 1.5 cores",
    );
    check(
        "",
        "0 load=3; 10 load=3; 11 load=1.4; 70 load=1.4",
        "other programs are using 3.0 cores",
    );
    check("", "0 load=3; 10 load=3; 11 load=1.4; 71 load=1.4", "working");
    check("", "0 load=3; 10 load=3; 11; 40 load=2; 71", "other programs are using 2.0 cores");
    check("load_patience_s = 0", "0 load=3", "other programs are using 3.0 cores");
    check("load_patience_s = 2\nload_resume_s = 0", "0 load=3; 2 load=3; 3", "working");
    // Who comes back to a machine that is busy with something else waits no longer for it.
    check(
        "",
        "0 idle=0 load=3; 10 idle=0 load=3; 11 load=3; 21 load=3",
        "other programs are using 3.0 cores",
    );
}

#[test]
fn memory_and_disk() {
    check("", "0 memory=512", "working");
    check("", "0 memory=511", "memory is short");
    check("", "0 memory=511 disk=0", "memory is short");
    check("", "0 memory=?", "working");
    check("", "0 memory=511; 1 memory=767; 99 memory=767", "memory is short");
    check("", "0 memory=511; 1 memory=768; 11 memory=768", "working");
    check("", "0 disk=1024", "working");
    check("", "0 disk=1023", "the disk is nearly full");
    check("", "0 disk=?", "working");
    check("", "0 disk=1023; 1 disk=2047; 99 disk=2047", "the disk is nearly full");
    check("", "0 disk=1023; 1 disk=2048; 11 disk=2048", "working");
    check("", "0 load=3 disk=0; 10 load=3 disk=0", "other programs are using 3.0 cores");
}

/// What waits keeps its memory: whoever lends must be able to end it, whatever is told first.
#[test]
fn shortage_is_seen_behind_other_reasons() {
    let settings = Settings::default();
    for (text, expect) in [("0 idle=0", false), ("0 idle=0 memory=1", true), ("0 disk=1", true)] {
        let (signals, now) = step(text);
        let (_, memory) = decide(&settings, &signals, &Memory::default(), now);
        assert_eq!(memory.is_short(), expect, "{text}");
    }
}

#[test]
fn a_clock_that_goes_back_is_no_harm() {
    check("", "100 zoom; 101; 50; 59", "zoom is running");
    check("", "100 zoom; 101; 50; 60", "working");
}

/// How often the decision changes in ten minutes of a step a second.
fn changes(settings: &Settings, mut signals_at: impl FnMut(u64) -> Signals) -> usize {
    let (mut last, mut memory, mut changes) = (true, Memory::default(), 0);
    for second in 0..600 {
        let (_, now) = step(&second.to_string());
        let (decision, next) = decide(settings, &signals_at(second), &memory, now);
        memory = next;
        let works = decision == Decision::Work;
        changes += usize::from(works != last);
        last = works;
    }
    changes
}

#[test]
fn what_swings_around_its_limit_moves_one_gate_once() {
    #[track_caller]
    fn check(even: &str, odd: &str, most: usize) {
        let settings = Settings { on_battery: true, ..Settings::default() };
        let swing = [even, odd].map(|text| step(&format!("0 {text}")).0);
        let found = changes(&settings, |second| swing[usize::from(second % 2 == 1)].clone());
        assert!(found <= most, "{even} {odd}: {found} changes");
    }
    check("battery=49", "battery=56", 1);
    check("idle=299", "idle=301", 1);
    check("idle=?", "idle=301", 1);
    check("zoom", "", 1);
    check("temp=86", "temp=70", 1);
    check("temp=84.9", "temp=85.1", 1);
    check("load=4", "load=0", 0);
    check("load=2.1", "load=1.9", 0);
    check("memory=500", "memory=900", 1);
    check("disk=1000", "disk=3000", 1);
}

fn any_signals() -> impl Strategy<Value = Signals> {
    let power = (any::<bool>(), prop::option::of(any::<u8>()))
        .prop_map(|(on_battery, percent)| Power { on_battery, percent });
    let celsius = prop_oneof![40.0..100.0, any::<f64>()];
    let load = prop_oneof![0.0..5.0, any::<f64>()];
    (
        (prop::bool::weighted(0.1), prop::option::of(prop_oneof![0..600u64, any::<u64>()])),
        (prop::option::of(power), prop::option::of(celsius), prop::option::of(load)),
        (prop::option::of(any::<u32>()), prop::collection::btree_set("[ab]", 0..2)),
        (prop::option::of(0..2000u64), prop::option::of(any::<u64>())),
    )
        .prop_map(
            |((owner_paused, input_idle_s), (power, temperature_c, others_cores), more, free)| {
                let ((cores, running), (memory_available_mb, disk_free_mb)) = (more, free);
                Signals {
                    owner_paused,
                    input_idle_s,
                    power,
                    temperature_c,
                    others_cores,
                    cores,
                    running,
                    memory_available_mb,
                    disk_free_mb,
                }
            },
        )
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let schedule = prop_oneof![Just(""), Just(NIGHT), Just("schedule = ['sat,sun']")];
    (schedule, any::<bool>(), any::<bool>(), 1u64..600, 0u8..=100).prop_map(
        |(schedule, only_when_idle, on_battery, idle_s, battery_percent_min)| Settings {
            only_when_idle,
            on_battery,
            idle_s,
            battery_percent_min,
            ..Settings::parse(schedule).unwrap()
        },
    )
}

proptest! {
    #[test]
    fn nothing_hard_is_ever_passed_over(
        settings in any_settings(),
        steps in prop::collection::vec((any_signals(), any::<u64>(), 0u16..7, any::<u16>()), 1..40),
    ) {
        let mut memory = Memory::default();
        for (signals, monotonic_ms, day, minute_of_day) in steps {
            let now = Moment { monotonic_ms, weekday: Weekday::from_number(day), minute_of_day };
            let (decision, next) = decide(&settings, &signals, &memory, now);
            let again = decide(&settings, &signals, &memory, now);
            prop_assert_eq!(&again, &(decision.clone(), next.clone()));
            memory = next;
            let on_battery = signals.power.is_some_and(|power| {
                let low = power.percent.is_none_or(|left| left < settings.battery_percent_min);
                power.on_battery && (!settings.on_battery || low)
            });
            let in_use = settings.only_when_idle
                && signals.input_idle_s.is_none_or(|idle_s| idle_s < settings.idle_s);
            let hard = signals.owner_paused
                || settings.schedule.opening(now).is_some()
                || on_battery
                || in_use
                || !signals.running.is_empty()
                || signals.temperature_c.is_some_and(|celsius| celsius >= settings.temperature_c_max);
            prop_assert!(!hard || decision != Decision::Work, "{:?}", decision);
            prop_assert!(!decision.to_string().contains("NaN"));
        }
    }

}

proptest! {
    // Each case is ten minutes.
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever swings, a pause lasts ten seconds.
    #[test]
    fn nothing_flaps(swings in prop::collection::vec(any_signals(), 1..20)) {
        let settings = Settings::default();
        let found = changes(&settings, |second| {
            let at = usize::try_from(second).unwrap() % swings.len();
            Signals { owner_paused: false, ..swings[at].clone() }
        });
        prop_assert!(found <= 2 * 600 / 10, "{found} changes");
    }
}
