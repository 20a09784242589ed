//! This crate's limits, as rows of the one table.

cell_abi::limits! {
    crate::settings {
        /// Longest time without input that can be asked for, in seconds.
        ///
        /// The settings are refused.
        IDLE_S_MAX: u64;
        /// Most cores that settings can name.
        ///
        /// The settings are refused.
        CORES_MAX: u32;
        /// Most memory that can be lent, in MiB.
        ///
        /// The settings are refused.
        LENT_MEMORY_MB_MAX: u64;
        /// Most disk that can be lent, in MiB.
        ///
        /// The settings are refused.
        LENT_DISK_MB_MAX: u64;
        /// Most bandwidth that settings can name, in KiB a second.
        ///
        /// The settings are refused.
        BANDWIDTH_KB_S_MAX: u64;
        /// Longest patience with other programs' load, in seconds.
        ///
        /// The settings are refused.
        PATIENCE_S_MAX: u64;
        /// Most programs beside which there is no work.
        ///
        /// The settings are refused.
        PROGRAMS_MAX: usize;
        /// Longest name of such a program, in bytes.
        ///
        /// The settings are refused.
        PROGRAM_BYTES_MAX: usize;
    }
    crate::schedule {
        /// Most spans of a schedule.
        ///
        /// The settings are refused.
        SPANS_MAX: usize;
    }
    crate::sensors {
        /// What is read of a file of the system, in bytes.
        ///
        /// The rest is not seen.
        FILE_BYTES_MAX: u64;
        /// What is read of a folder of the system, such as that of all processes.
        ///
        /// Further entries are not seen.
        ENTRIES_MAX: usize;
    }
}
