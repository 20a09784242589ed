//! When a PC that its owner lends works for others: settings, signals and the time in, a decision out.
//!
//! [`Sensors`] read what the machine shows, and [`decide`] is a pure function of it. Nothing here starts,
//! stops or shapes work: whoever asks does that, and shows the owner the [`Reason`] of every pause.
//!
//! ```
//! use cell_donor::{Decision, Memory, Moment, Power, Settings, Signals, Weekday, decide};
//!
//! let settings = Settings::parse(r#"schedule = ["mon-fri 18:00-08:00", "sat,sun"]"#)?;
//! let now = Moment { monotonic_ms: 0, weekday: Weekday::Mon, minute_of_day: 19 * 60 };
//! let quiet = Signals { input_idle_s: Some(400), ..Signals::default() };
//!
//! let (decision, memory) = decide(&settings, &quiet, &Memory::default(), now);
//! assert_eq!(decision, Decision::Work);
//!
//! let unplugged = Power { on_battery: true, percent: Some(90) };
//! let signals = Signals { power: Some(unplugged), ..quiet };
//! let (decision, _) = decide(&settings, &signals, &memory, now);
//! assert_eq!(decision.to_string(), "paused: on battery");
//! # Ok::<(), cell_donor::SettingsError>(())
//! ```

pub mod clock;
mod limits;
pub mod policy;
pub mod schedule;
pub mod sensors;
pub mod settings;

pub use clock::Moment;
pub use limits::LIMITS;
pub use policy::{Decision, Memory, Power, Reason, Signals, decide};
pub use schedule::{Opening, Schedule, Span, Weekday};
pub use sensors::Sensors;
pub use settings::{Settings, SettingsError};
