//! Who agrees with whom, and who is believed.

use cell_abi::AccountId;
use serde_json::json;

use super::*;
use crate::peers::Machine;

/// A machine that says this, with so much fuel.
fn ran(number: u8, output: &str, fuel: u64, engine: &str) -> Ran {
    let peer = AccountId::from_bytes([number; 32]);
    let machine = Machine { peer, address: "h:1".into() };
    Ran {
        machine: Candidate { name: number.to_string(), machine },
        receipt: json!({ "outcome": { "status": "exited", "exit_code": 0 },
                         "output_hash": output, "engine_id": engine, "fuel": fuel }),
        output: Vec::new(),
        errors: Vec::new(),
        exit: 0,
        message: String::new(),
        engine: None,
    }
}

fn machines(said: &[(&str, u64, &str)]) -> Vec<Ran> {
    (1..)
        .zip(said)
        .map(|(number, (output, fuel, engine))| ran(number, output, *fuel, engine))
        .collect()
}

#[test]
fn those_that_say_the_same_agree() {
    #[track_caller]
    fn check(said: &[(&str, u64, &str)], expect: &[usize]) {
        assert_eq!(largest(&machines(said)), expect, "{said:?}");
    }
    check(&[], &[]);
    check(&[("a", 1, "e")], &[0]);
    check(&[("a", 1, "e"), ("a", 1, "e")], &[0, 1]);
    check(&[("b", 1, "e"), ("a", 1, "e"), ("a", 1, "e")], &[1, 2]);
    // One that bills more fuel for the same output.
    check(&[("a", 1, "e"), ("a", 2, "e"), ("a", 1, "e")], &[0, 2]);
    // One that hides that behind an engine which nobody can compare.
    check(&[("a", 2, "f"), ("a", 1, "e"), ("a", 1, "e")], &[1, 2]);
    check(&[("a", 1, "e"), ("b", 1, "e")], &[0]);
}

#[test]
fn quorums_are_more_than_half() {
    for (replicas, quorum, expect) in [
        (2, None, Some(2)),
        (3, None, Some(2)),
        (5, Some(4), Some(4)),
        (4, Some(2), None),
        (2, Some(1), None),
        (3, Some(4), None),
    ] {
        let found = Wanted::new(replicas, quorum).map(|wanted| wanted.quorum).ok();
        assert_eq!(found, expect, "{replicas} {quorum:?}");
    }
}

#[test]
fn running_it_again_settles_a_dispute() {
    let disputed = machines(&[("b", 1, "e"), ("a", 1, "e")]);
    let wrong = || Some(Verdict::Invalid("fuel: billed 2, run again 1".into()));
    let unknown = || Some(Verdict::NotCheckable("it was stopped".into()));
    assert_eq!(believe(&disputed, &[None, None], None), None);
    assert_eq!(believe(&disputed, &[wrong(), unknown()], None), None);
    let verdicts = [wrong(), Some(Verdict::Valid)];
    let believed = believe(&disputed, &verdicts, None);
    assert_eq!(believed, Some(vec![1]));
    let found = judge(&disputed, &verdicts, believed.as_deref());
    assert!(matches!(&found[0].2, Found::Proven(why) if why.contains("billed 2")), "{found:?}");
    assert_eq!(found[1].2, Found::Valid);
    // Two that lie the same way, and are found out.
    let agreed = machines(&[("b", 1, "e"), ("b", 1, "e"), ("a", 1, "e")]);
    let verdicts = [wrong(), wrong(), Some(Verdict::Valid)];
    assert_eq!(believe(&agreed, &verdicts, Some(vec![0, 1])), Some(vec![2]));
    // The few are not believed, and start from nothing; nobody says that they lied.
    let verdicts = [None, None, None];
    let believed = believe(&agreed, &verdicts, Some(vec![0, 1]));
    let found = judge(&agreed, &verdicts, believed.as_deref());
    assert_eq!([&found[0].2, &found[1].2], [&Found::Valid, &Found::Valid]);
    assert!(matches!(found[2].2, Found::Invalid(_)));
}
