//! The methods of the contract: the names that spans and metrics may contain.

use crate::domain::caller::Action;

/// Every method. Paths that clients make up are not among them.
pub(super) const METHODS: [&str; 23] = [
    "gatekey.v1.KeyService/Validate",
    "envoy.service.auth.v3.Authorization/Check",
    "gatekey.v1.KeyService/BatchValidate",
    "gatekey.v1.KeyService/CreateKey",
    "gatekey.v1.KeyService/GetKey",
    "gatekey.v1.KeyService/ListKeys",
    "gatekey.v1.KeyService/LookupKey",
    "gatekey.v1.KeyService/RevokeKey",
    "gatekey.v1.KeyService/RevokeKeys",
    "gatekey.v1.KeyService/RotateKey",
    "gatekey.v1.KeyService/UpdateKey",
    "gatekey.v1.OwnerService/CreateOwner",
    "gatekey.v1.OwnerService/DeleteOwner",
    "gatekey.v1.OwnerService/GetOwner",
    "gatekey.v1.OwnerService/ListOwners",
    "gatekey.v1.OwnerService/UpdateOwner",
    "gatekey.v1.TenantService/CreateTenant",
    "gatekey.v1.TenantService/DeleteTenant",
    "gatekey.v1.TenantService/GetTenant",
    "gatekey.v1.TenantService/ListTenants",
    "gatekey.v1.TenantService/UpdateTenant",
    "gatekey.v1.EventService/ListEvents",
    "gatekey.v1.EventService/WatchEvents",
];

/// The indexes of the hot calls, which come first.
pub(super) const VALIDATE: usize = 0;
pub(super) const CHECK: usize = 1;
/// The number of the hot calls.
pub(super) const HOT: usize = 2;

/// Returns the permission that a method requires, or `None` if there is no such method.
pub(super) fn action(method: &str) -> Option<Action> {
    if method == METHODS[CHECK] {
        return Some(Action::KeysValidate);
    }
    Some(match method.strip_prefix("gatekey.v1.")? {
        "KeyService/Validate" | "KeyService/BatchValidate" => Action::KeysValidate,
        "KeyService/CreateKey" => Action::KeysCreate,
        "KeyService/GetKey" => Action::KeysGet,
        "KeyService/ListKeys" => Action::KeysList,
        "KeyService/LookupKey" => Action::KeysLookup,
        "KeyService/RevokeKey" | "KeyService/RevokeKeys" => Action::KeysRevoke,
        "KeyService/RotateKey" => Action::KeysRotate,
        "KeyService/UpdateKey" => Action::KeysUpdate,
        "OwnerService/CreateOwner" | "OwnerService/DeleteOwner" | "OwnerService/UpdateOwner" => {
            Action::OwnersWrite
        }
        "OwnerService/GetOwner" | "OwnerService/ListOwners" => Action::OwnersRead,
        "TenantService/GetTenant" | "TenantService/ListTenants" => Action::TenantsRead,
        "TenantService/CreateTenant"
        | "TenantService/DeleteTenant"
        | "TenantService/UpdateTenant" => Action::TenantsWrite,
        "EventService/ListEvents" | "EventService/WatchEvents" => Action::EventsRead,
        _ => return None,
    })
}

/// Returns the index in [`METHODS`] of the method in a path, with or without a leading slash.
pub(super) fn find(path: &str) -> Option<usize> {
    let path = path.strip_prefix('/').unwrap_or(path);
    METHODS.iter().position(|method| *method == path)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_method_of_the_contract_is_known() {
        let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/gatekey.v1.bin"));
        let files = prost_types::FileDescriptorSet::decode(&bytes[..]).unwrap();
        let mut methods = Vec::new();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    let (package, service) = (file.package(), service.name());
                    methods.push(format!("{package}.{service}/{}", method.name()));
                }
            }
        }
        methods.push(METHODS[CHECK].to_owned());
        methods.sort();
        let mut known = METHODS.to_vec();
        known.sort_unstable();
        assert_eq!(known, methods);
        for method in METHODS {
            assert!(action(method).is_some(), "{method} asks for no right");
        }
    }
}
