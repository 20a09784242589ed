//! The `cell:interface` section of a module.

use cell_abi::limits::{INTERFACE_BYTES_MAX, RECEPTORS_MAX};
use cell_abi::{Fingerprint, Interface};

/// Parses the bytes as a section; what is taken is in order, within its limits, and means the same
/// when it is written down again.
pub fn interface(data: &[u8]) {
    let Ok(interface) = Interface::parse(data) else { return };
    let receptors = interface.receptors();
    assert!(data.len() <= INTERFACE_BYTES_MAX && receptors.len() <= RECEPTORS_MAX);
    assert!(receptors.is_sorted_by(|a, b| a.name < b.name), "a number is a position by name");
    let mut text = String::new();
    for (number, receptor) in receptors.iter().enumerate() {
        let found = interface.find(receptor.name.as_str());
        assert_eq!(found, Some((u16::try_from(number).expect("at most 256"), receptor)));
        assert_eq!(Fingerprint::of_schema(&receptor.schema), receptor.fingerprint);
        // A terminal shows it, so it may hold nothing that moves a cursor.
        assert!(!receptor.schema.chars().any(|c| c.is_control() && c != '\n'));
        text.push_str(&receptor.schema);
        text.push('\n');
    }
    if text.len() <= INTERFACE_BYTES_MAX {
        assert_eq!(Interface::parse(text.as_bytes()), Ok(interface));
    }
}
