//! Which settings the gatekey that is measured knows: a section that needs one it has not says so.

use std::{process::Command, sync::LazyLock};

use crate::support::tool;

/// How many keys are kept in memory at most.
pub const CACHE_KEYS: &str = "GATEKEY_CACHE_KEYS";
/// How many keys are read into memory before it is ready.
pub const WARM_KEYS: &str = "GATEKEY_WARM_KEYS";

/// What `gatekey --help` says.
pub struct Settings(String);

impl Settings {
    pub fn get() -> &'static Self {
        static SETTINGS: LazyLock<Settings> = LazyLock::new(|| {
            Settings(tool::run(
                Command::new(env!("CARGO_BIN_EXE_gatekey")).arg("--help"),
            ))
        });
        &SETTINGS
    }

    /// Whether keys are kept in memory.
    pub fn has_cache(&self) -> bool {
        self.require(CACHE_KEYS).is_ok()
    }

    /// That it knows this setting, or why what needs it cannot be measured.
    pub fn require(&self, setting: &str) -> Result<(), String> {
        if self.0.contains(setting) {
            Ok(())
        } else {
            Err(format!("this gatekey has no {setting}"))
        }
    }
}
