//! Owners: whom keys belong to, and what they may do today.

use super::scope::Scopes;

/// An owner's record. Without one an owner does not limit its keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    /// The tenant it is of.
    pub tenant_id: String,
    /// Its name in that tenant.
    pub owner_id: String,
    /// What it may do, and so at most its keys. Empty: nothing.
    pub scopes: Scopes,
    /// Where its keys may be used. Empty: anywhere.
    pub audiences: Vec<String>,
    /// Whether all its keys are refused.
    pub suspended: bool,
    /// For people.
    pub display_name: String,
    /// The revision of its last change.
    pub revision: i64,
    /// Whether a part of its row could not be read. It is then suspended.
    pub unreadable: bool,
}
