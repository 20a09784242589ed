//! Limits that both ends of a connection must agree on.
//!
//! Limits of one side only (memory, timeouts, queues) live with that side.

crate::limits! {
    /// Largest payload of one frame, in bytes. The padding after the payload is not counted.
    ///
    /// A header that claims more is refused before any memory is taken for it, and the connection
    /// is closed.
    pub const FRAME_PAYLOAD_BYTES_MAX: u32 = 16 << 20;

    /// Largest payload of an `Open` frame, in bytes: a fingerprint and two names.
    ///
    /// A header that claims more is refused, and the connection is closed.
    pub const OPEN_PAYLOAD_BYTES_MAX: u32 = 256;

    /// Largest message of a [`Reject`](crate::Reject) or of an error reply, in bytes.
    ///
    /// A longer message is cut at a character boundary.
    pub const MESSAGE_BYTES_MAX: usize = 1024;

    /// Largest `cell:interface` section of a module, in bytes; of several, all together.
    ///
    /// The gate refuses the module.
    pub const INTERFACE_BYTES_MAX: usize = 64 << 10;

    /// Most receptors one cell may have.
    ///
    /// The gate refuses the module.
    pub const RECEPTORS_MAX: usize = 256;

    /// Longest name of a cell or receptor, in bytes.
    ///
    /// A longer one is no name: the manifest, the module or the call is refused.
    pub const NAME_BYTES_MAX: usize = 64;

    /// Longest schema text of one receptor, in bytes.
    ///
    /// A cell with a longer one does not compile.
    pub const SCHEMA_BYTES_MAX: usize = 4096;
}
