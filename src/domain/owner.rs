//! Owners of keys and their current permissions.

use super::scope::Scopes;

/// An owner's record. An owner without a record does not limit its keys.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Owner {
    /// The tenant of the owner.
    pub tenant_id: String,
    /// The name of the owner in that tenant.
    pub owner_id: String,
    /// The permissions of the owner and the upper limit of those of its keys. Empty: none.
    pub scopes: Scopes,
    /// The audiences for which the owner's keys are valid. Empty: any.
    pub audiences: Vec<String>,
    /// True if all the owner's keys are denied.
    pub suspended: bool,
    /// A name for display.
    pub display_name: String,
    /// The revision of the last change.
    pub revision: i64,
    /// True if a part of the row cannot be read. The owner is then suspended.
    pub unreadable: bool,
}
