//! Conversion between protobuf messages and domain types.

pub(super) mod mask;
pub(super) mod request;
pub(super) mod response;
pub(super) mod status;
