//! Whether a machine runs on its battery.

use std::path::Path;

use super::files;
use crate::policy::Power;

/// Where the current comes from; `None` without a battery.
pub(super) fn power(supplies: &Path) -> Option<Power> {
    let (mut mains, mut online, mut discharging) = (false, false, false);
    let mut percents: Vec<u8> = Vec::new();
    let mut batteries = 0;
    for (_, path) in files::entries(supplies) {
        // A mouse has a battery too, and it is not the machine's.
        if files::word(&path.join("scope")).is_some_and(|scope| scope == "Device") {
            continue;
        }
        match files::word(&path.join("type")).as_deref() {
            Some("Mains" | "USB") => {
                mains = true;
                online |= files::number(&path.join("online")) == Some(1_u32);
            }
            Some("Battery" | "UPS") => {
                batteries += 1;
                discharging |= files::word(&path.join("status")).as_deref() == Some("Discharging");
                let percent = files::number(&path.join("capacity"));
                percents.extend(percent.filter(|percent: &u8| *percent <= 100));
            }
            _ => {}
        }
    }
    // A weak charger may be plugged in while the charge falls: that is mains still.
    let on_battery = !online && (discharging || mains);
    (batteries > 0).then(|| Power { on_battery, percent: mean(&percents) })
}

/// Two batteries are emptied one after the other.
fn mean(percents: &[u8]) -> Option<u8> {
    let sum: usize = percents.iter().map(|percent| usize::from(*percent)).sum();
    u8::try_from(sum.checked_div(percents.len())?).ok()
}
