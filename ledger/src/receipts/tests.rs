//! Receipts against every change of a byte, and the store against its bounds.

use super::*;

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn terms() -> Terms {
    Terms {
        payer: AccountId::from_bytes([1; 32]),
        cell: "echo".into(),
        payee: AccountId::from_bytes([2; 32]),
        engine_id: EngineId::from_bytes([3; 32]),
        rates: BTreeMap::from([(FUEL.to_owned(), Rate { nano_atp: 1, per: 3 })]),
    }
}

fn leaves(calls: std::ops::Range<u64>) -> Vec<Leaf> {
    let leaf = |call: u64| Leaf {
        call,
        cell_hash: CellHash::of(b"code"),
        receptor: 0,
        json: false,
        memory_bytes_max: 64 << 20,
        state_bytes_max: 16 << 20,
        fuel_max: 1000,
        fuel: 100 + call,
        billed: Counters::from([(FUEL.to_owned(), 100 + call)]),
        status: 0,
        input_bytes: 2,
        input_hash: content_hash(b"in"),
        output_bytes: 3,
        output_hash: content_hash(b"out"),
        tape_bytes: 0,
        tape_hash: content_hash(b""),
        not_checkable: None,
    };
    calls.map(leaf).collect()
}

#[test]
fn a_chain_counts_on() {
    let first = Receipt::issue(&terms(), None, &leaves(1..4), &key()).unwrap();
    let second = Receipt::issue(&terms(), Some(&first), &leaves(4..6), &key()).unwrap();
    for (receipt, before, calls) in [(&first, None, 1..4), (&second, Some(&first), 4..6)] {
        receipt.check().unwrap();
        receipt.check_follows(before).unwrap();
        receipt.check_leaves(before, &leaves(calls)).unwrap();
    }
    // The sum is rounded, not each call.
    assert_eq!(second.charge_nano_atp, (101 + 102 + 103 + 104 + 105) / 3);
    let hashes: Vec<_> = leaves(1..4).iter().map(Leaf::hash).collect();
    for (place, leaf) in leaves(1..4).iter().enumerate() {
        first.check_leaf(leaf, &merkle::path(&hashes, place)).unwrap();
        second.check_leaf(leaf, &merkle::path(&hashes, place)).unwrap_err();
    }
    assert_eq!(first.check_follows(Some(&second)), Err(ReceiptError::Chain(2, "one is missing")));
    let other = Receipt::issue(&terms(), None, &leaves(1..3), &key()).unwrap();
    assert_eq!(
        second.check_follows(Some(&other)),
        Err(ReceiptError::Chain(1, "it names another one"))
    );
}

/// One unit of fuel more in a leaf, the receipt, or both: each is named.
#[test]
fn an_overcharge_is_named() {
    let honest = leaves(1..4);
    let mut inflated = honest.clone();
    inflated[1].billed.insert(FUEL.into(), 103);
    let receipt = Receipt::issue(&terms(), None, &honest, &key()).unwrap();
    assert_eq!(receipt.check_leaves(None, &inflated), Err(ReceiptError::Leaves));
    let mut more = receipt;
    more.counters.insert(FUEL.into(), 307);
    more.charge_nano_atp = 307 / 3;
    assert_eq!(more.check(), Err(ReceiptError::Signature));
    // The node itself signs what its leaves do not make.
    more.signature = String::new();
    more.signature = signed::sign(SIGNED, &more, &key());
    more.check().unwrap();
    assert_eq!(
        more.check_leaves(None, &honest),
        Err(ReceiptError::Sum { dimension: FUEL.into(), leaves: 306, receipt: 307 })
    );
    more.charge_nano_atp += 1;
    more.signature = String::new();
    more.signature = signed::sign(SIGNED, &more, &key());
    assert_eq!(more.check(), Err(ReceiptError::Charge { expected: 102, charged: 103 }));
}

#[test]
fn every_byte_is_signed() {
    let receipt = Receipt::issue(&terms(), None, &leaves(1..4), &key()).unwrap();
    let text = json(&receipt);
    for at in 0..text.len() {
        for bit in [1, 4, 64] {
            let mut changed = text.clone();
            changed[at] ^= bit;
            let Ok(read) = serde_json::from_slice::<Receipt>(&changed) else { continue };
            assert!(read == receipt || read.check().is_err(), "byte {at}");
            // Ids may be written with capitals; nothing else reads alike.
            let same = changed.eq_ignore_ascii_case(&text);
            assert!(read != receipt || same, "byte {at} is not looked at");
        }
    }
}

#[test]
fn the_store_keeps_receipts_and_the_newest_calls() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("receipts.db");
    let mut store = ReceiptStore::open(&path, 20_000).unwrap();
    let mut last = None;
    for round in 0..20_u64 {
        let leaves = leaves(round * 2 + 1..round * 2 + 3);
        let receipt = Receipt::issue(&terms(), last.as_ref(), &leaves, &key()).unwrap();
        let kept =
            |leaf: &Leaf| KeptCall { leaf: leaf.clone(), input: Some(vec![7; 1000]), tape: None };
        store.append(&receipt, &leaves.iter().map(kept).collect::<Vec<_>>()).unwrap();
        assert!(store.kept_bytes() <= 20_000);
        last = Some(receipt);
    }
    let kept_bytes = store.kept_bytes();
    let mut store = ReceiptStore::open(&path, 20_000).unwrap();
    assert_eq!(store.kept_bytes(), kept_bytes);
    let last = last.unwrap();
    assert_eq!(store.last(&terms()).unwrap().as_ref(), Some(&last));
    let all = store.receipts(&Filter::default()).unwrap();
    assert_eq!(all.len(), 20);
    assert!(all.windows(2).all(|pair| pair[1].check_follows(Some(&pair[0])).is_ok()));
    assert_eq!(store.before(&last).unwrap().as_ref(), Some(&all[18]));
    assert_eq!(store.find(&last.hash().to_string()[..12]).unwrap(), std::slice::from_ref(&last));
    assert_eq!(store.calls(&last).unwrap().len(), 2);
    assert_eq!(store.calls(&all[0]).unwrap().len(), 0);
    // The same again is refused, and changes nothing.
    assert!(store.append(&last, &[]).is_err());
    assert_eq!(store.receipts(&Filter { latest: 3, ..Filter::default() }).unwrap(), all[17..]);
}

#[test]
fn another_file_is_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("receipts.db");
    std::fs::write(&path, [0x55; 9000]).unwrap();
    assert!(ReceiptStore::open(&path, 1).is_err());
}
