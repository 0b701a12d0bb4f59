//! Who may call what: credentials, rights, and the tenants that do not exist for a caller.

use std::{collections::BTreeSet, time::Duration};

use gatekey::api::{
    DESCRIPTORS,
    proto::{
        CreateKeyRequest, CreateOwnerRequest, CreateTenantRequest, DeleteOwnerRequest,
        DeleteTenantRequest, EnforcementState, Event, EventType, GetKeyRequest, GetOwnerRequest,
        GetTenantRequest, Key, KeyState, ListEventsRequest, ListKeysRequest, ListOwnersRequest,
        ListTenantsRequest, LookupKeyRequest, Owner, Reason, RevokeKeyRequest, RevokeKeysRequest,
        RotateKeyRequest, Tenant, UpdateKeyRequest, UpdateOwnerRequest, UpdateTenantRequest,
        ValidateRequest, ValidateResponse, WatchEventsRequest,
        key_service_client::KeyServiceClient, watch_events_response::Message,
    },
};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio::task::JoinSet;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use crate::{
    indistinguishable::{unknown, with_another_secret},
    support::{
        Client, Engine,
        client::{
            ask, error_reason, new_key, next_event, texts, unused, whole_owner, whole_tenant,
        },
        on_both_engines,
    },
};

use crate::support::client::{key_target, owner_target};
use Rpc::{
    BatchValidate, CreateKey, CreateOwner, CreateTenant, DeleteOwner, DeleteTenant, GetKey,
    GetOwner, GetTenant, ListEvents, ListKeys, ListOwners, ListTenants, LookupKey, RevokeKey,
    RevokeKeys, RotateKey, UpdateKey, UpdateOwner, UpdateTenant, Validate, WatchEvents,
};

/// Who owns the keys that callers of these tests have.
const CALLER: &str = "caller";

/// How long a stream may take to tell what it must tell.
const DEADLINE: Duration = Duration::from_secs(30);

/// Every RPC of the four services.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rpc {
    CreateKey,
    Validate,
    BatchValidate,
    GetKey,
    LookupKey,
    ListKeys,
    UpdateKey,
    RotateKey,
    RevokeKey,
    RevokeKeys,
    UpdateOwner,
    GetOwner,
    ListOwners,
    DeleteOwner,
    CreateOwner,
    UpdateTenant,
    GetTenant,
    ListTenants,
    DeleteTenant,
    CreateTenant,
    ListEvents,
    WatchEvents,
}

/// In an order in which one target lets all of them succeed.
const ALL: [Rpc; 22] = [
    CreateKey,
    Validate,
    BatchValidate,
    GetKey,
    LookupKey,
    ListKeys,
    UpdateKey,
    RotateKey,
    RevokeKey,
    RevokeKeys,
    UpdateOwner,
    GetOwner,
    ListOwners,
    DeleteOwner,
    CreateOwner,
    UpdateTenant,
    GetTenant,
    ListTenants,
    DeleteTenant,
    CreateTenant,
    ListEvents,
    WatchEvents,
];

const VALIDATES: [Rpc; 2] = [Validate, BatchValidate];

/// Each action, and what it grants.
const GRANTS: [(&str, &[Rpc]); 13] = [
    ("keys:create", &[CreateKey]),
    ("keys:get", &[GetKey]),
    ("keys:list", &[ListKeys]),
    ("keys:update", &[UpdateKey]),
    ("keys:rotate", &[RotateKey]),
    ("keys:revoke", &[RevokeKey, RevokeKeys]),
    ("keys:validate", &[Validate, BatchValidate]),
    ("keys:lookup", &[LookupKey]),
    ("owners:read", &[GetOwner, ListOwners]),
    ("owners:write", &[UpdateOwner, DeleteOwner, CreateOwner]),
    ("tenants:read", &[GetTenant, ListTenants]),
    ("tenants:write", &[UpdateTenant, DeleteTenant, CreateTenant]),
    ("events:read", &[ListEvents, WatchEvents]),
];

/// What a call is about: a tenant, and in it an owner and a key of that owner.
#[derive(Clone, Debug)]
struct Target {
    tenant_id: String,
    owner_id: String,
    key_id: String,
    plaintext: String,
}

impl Target {
    /// A new key of a tenant, whose owner has a record.
    async fn in_tenant(admin: &Client, tenant: &str) -> Self {
        let owner = Owner {
            tenant_id: tenant.to_owned(),
            owner_id: "alice".to_owned(),
            scopes: texts(&["jobs:*"]),
            ..Owner::default()
        };
        let owner_id = admin.set_owner(owner).await.owner_id;
        let (key, plaintext) = admin.issue(tenant, &["jobs:read"]).await;
        Self {
            tenant_id: tenant.to_owned(),
            owner_id,
            key_id: key.key_id,
            plaintext,
        }
    }

    /// A new tenant with such a key.
    async fn in_new_tenant(admin: &Client, tenant: &str) -> Self {
        admin.set_tenant(named(tenant)).await;
        Self::in_tenant(admin, tenant).await
    }

    /// What was never made, all names being well formed.
    fn nowhere(tenant: &str) -> Self {
        let plaintext = unknown();
        Self {
            tenant_id: tenant.to_owned(),
            owner_id: "alice".to_owned(),
            key_id: format!("key_{}", &plaintext[3..19]),
            plaintext,
        }
    }

    /// The same, asked for under the name of another tenant; `""`: of none.
    fn under(&self, tenant: &str) -> Self {
        Self {
            tenant_id: tenant.to_owned(),
            ..self.clone()
        }
    }
}

impl Rpc {
    /// Calls it in a way that nothing but the caller's rights can refuse; gives the answer's bytes.
    async fn call(self, client: &Client, target: &Target) -> Result<Vec<u8>, Status> {
        match self {
            CreateOwner | UpdateOwner | GetOwner | ListOwners | DeleteOwner => {
                self.of_owners(client, target).await
            }
            CreateTenant | UpdateTenant | GetTenant | ListTenants | DeleteTenant => {
                self.of_tenants(client, target).await
            }
            ListEvents | WatchEvents => self.of_events(client, target).await,
            _ => self.of_keys(client, target).await,
        }
    }

    async fn of_keys(self, client: &Client, target: &Target) -> Result<Vec<u8>, Status> {
        let mut keys = client.keys.clone();
        let Target {
            tenant_id,
            owner_id,
            key_id,
            plaintext,
        } = target.clone();
        let key = Key {
            key_id: key_id.clone(),
            tenant_id: tenant_id.clone(),
            label: "another label".to_owned(),
            ..Key::default()
        };
        match self {
            CreateKey => bytes(keys.create_key(new_key(&tenant_id, &["jobs:read"])).await),
            Validate => {
                let question = ValidateRequest {
                    tenant_id,
                    ..ask(&plaintext)
                };
                bytes(keys.validate(question).await)
            }
            BatchValidate => {
                let question = ValidateRequest {
                    tenant_id,
                    ..ask(&plaintext)
                };
                bytes(batch_of_one(client, question).await.map(Response::new))
            }
            GetKey => bytes(keys.get_key(GetKeyRequest { key_id, tenant_id }).await),
            LookupKey => {
                let lookup = LookupKeyRequest {
                    plaintext_key: plaintext,
                    tenant_id,
                };
                bytes(keys.lookup_key(lookup).await)
            }
            ListKeys => {
                let list = ListKeysRequest {
                    tenant_id,
                    ..ListKeysRequest::default()
                };
                bytes(keys.list_keys(list).await)
            }
            UpdateKey => bytes(keys.update_key(update(key, &["label"])).await),
            RotateKey => bytes(keys.rotate_key(rotate(key)).await),
            RevokeKey => {
                let revoke = RevokeKeyRequest {
                    tenant_id,
                    target: key_target(key_id),
                    reason: String::new(),
                };
                bytes(keys.revoke_key(revoke).await)
            }
            RevokeKeys => {
                let revoke = RevokeKeysRequest {
                    tenant_id,
                    target: owner_target(owner_id),
                    ..RevokeKeysRequest::default()
                };
                bytes(keys.revoke_keys(revoke).await)
            }
            other => unreachable!("{other:?} is not of KeyService"),
        }
    }

    async fn of_owners(self, client: &Client, target: &Target) -> Result<Vec<u8>, Status> {
        let mut owners = client.owners.clone();
        let (tenant_id, owner_id) = (target.tenant_id.clone(), target.owner_id.clone());
        match self {
            CreateOwner => {
                let owner = Some(Owner {
                    tenant_id,
                    owner_id,
                    ..Owner::default()
                });
                let answer = owners.create_owner(CreateOwnerRequest { owner }).await;
                bytes_unless(answer, "OWNER_ALREADY_EXISTS")
            }
            UpdateOwner => {
                let owner = Some(Owner {
                    tenant_id,
                    owner_id,
                    display_name: "another name".to_owned(),
                    ..Owner::default()
                });
                let update = UpdateOwnerRequest {
                    owner,
                    ..UpdateOwnerRequest::default()
                };
                bytes(owners.update_owner(update).await)
            }
            GetOwner => {
                let get = GetOwnerRequest {
                    tenant_id,
                    owner_id,
                };
                bytes(owners.get_owner(get).await)
            }
            ListOwners => {
                let list = ListOwnersRequest {
                    tenant_id,
                    ..ListOwnersRequest::default()
                };
                bytes(owners.list_owners(list).await)
            }
            DeleteOwner => {
                let delete = DeleteOwnerRequest {
                    tenant_id,
                    owner_id,
                    revoke_keys: false,
                };
                bytes_unless(owners.delete_owner(delete).await, "OWNER_HAS_KEYS")
            }
            other => unreachable!("{other:?} is not of OwnerService"),
        }
    }

    async fn of_tenants(self, client: &Client, target: &Target) -> Result<Vec<u8>, Status> {
        let mut tenants = client.tenants.clone();
        let tenant_id = target.tenant_id.clone();
        match self {
            CreateTenant => {
                let tenant = Some(named(&tenant_id));
                let answer = tenants.create_tenant(CreateTenantRequest { tenant }).await;
                bytes_unless(answer, "TENANT_ALREADY_EXISTS")
            }
            UpdateTenant => {
                let tenant = Some(Tenant {
                    display_name: "another name".to_owned(),
                    ..named(&tenant_id)
                });
                let update = UpdateTenantRequest {
                    tenant,
                    ..UpdateTenantRequest::default()
                };
                bytes(tenants.update_tenant(update).await)
            }
            DeleteTenant => {
                let answer = tenants
                    .delete_tenant(DeleteTenantRequest { tenant_id })
                    .await;
                bytes_unless(answer, "TENANT_IN_USE")
            }
            GetTenant => bytes(tenants.get_tenant(GetTenantRequest { tenant_id }).await),
            ListTenants => bytes(tenants.list_tenants(ListTenantsRequest::default()).await),
            other => unreachable!("{other:?} is not of TenantService"),
        }
    }

    async fn of_events(self, client: &Client, target: &Target) -> Result<Vec<u8>, Status> {
        let mut events = client.events.clone();
        let tenant_id = target.tenant_id.clone();
        match self {
            ListEvents => {
                let list = ListEventsRequest {
                    tenant_id,
                    ..ListEventsRequest::default()
                };
                bytes(events.list_events(list).await)
            }
            WatchEvents => {
                let watch = WatchEventsRequest {
                    tenant_id,
                    ..WatchEventsRequest::default()
                };
                let mut stream = events.watch_events(watch).await?.into_inner();
                Ok(next_event(&mut stream).await.encode_to_vec())
            }
            other => unreachable!("{other:?} is not of EventService"),
        }
    }
}

fn bytes<T: prost::Message>(answer: Result<Response<T>, Status>) -> Result<Vec<u8>, Status> {
    Ok(answer?.into_inner().encode_to_vec())
}

/// The same, but an error with this reason is as good as an answer: the caller may do it, and what is there forbids it.
fn bytes_unless<T: prost::Message>(
    answer: Result<Response<T>, Status>,
    reason: &str,
) -> Result<Vec<u8>, Status> {
    match answer {
        Err(status) if error_reason(&status) == reason => Ok(Vec::new()),
        answer => bytes(answer),
    }
}

/// Asks about one credential with BatchValidate; gives its answer or its own error.
async fn batch_of_one(
    client: &Client,
    question: ValidateRequest,
) -> Result<ValidateResponse, Status> {
    let results = client.batch(vec![question]).await?;
    let [result] = results.try_into().expect("one result for one item");
    result
}

fn named(tenant: &str) -> Tenant {
    Tenant {
        tenant_id: tenant.to_owned(),
        ..Tenant::default()
    }
}

fn update(key: Key, paths: &[&str]) -> UpdateKeyRequest {
    UpdateKeyRequest {
        key: Some(Key { revision: 0, ..key }),
        update_mask: Some(prost_types::FieldMask {
            paths: texts(paths),
        }),
    }
}

fn rotate(key: Key) -> RotateKeyRequest {
    RotateKeyRequest {
        key_id: key.key_id,
        tenant_id: key.tenant_id,
        ..RotateKeyRequest::default()
    }
}

fn system_owner(owner_id: &str, scopes: &[&str]) -> Owner {
    Owner {
        tenant_id: "system".to_owned(),
        owner_id: owner_id.to_owned(),
        scopes: texts(scopes),
        ..Owner::default()
    }
}

/// A key of tenant `system`, of an owner that no target has.
fn system_key(scopes: &[&str]) -> CreateKeyRequest {
    CreateKeyRequest {
        owner_id: CALLER.to_owned(),
        ..new_key("system", scopes)
    }
}

/// A caller with a new key of tenant `system`, and that key.
async fn caller(admin: &Client, scopes: &[&str]) -> (Client, Key) {
    let (key, plaintext) = admin.create(system_key(scopes)).await;
    (admin.with(&plaintext), key)
}

#[track_caller]
fn assert_refused<T>(answer: Result<T, Status>, code: Code, reason: &str, what: &str) {
    let Err(status) = answer else {
        panic!("{what} is not refused");
    };
    let got = (status.code(), &*error_reason(&status));
    assert_eq!(got, (code, reason), "{what}: {}", status.message());
}

/// Every RPC is refused so, and none of them changes anything.
async fn assert_all_refused(
    admin: &Client,
    client: &Client,
    target: &Target,
    rpcs: impl IntoIterator<Item = Rpc>,
    (code, reason): (Code, &str),
    who: &str,
) {
    let before = events(admin, ListEventsRequest::default()).await;
    for rpc in rpcs {
        let answer = rpc.call(client, target).await;
        assert_refused(answer, code, reason, &format!("{rpc:?} by {who}"));
    }
    let after = events(admin, ListEventsRequest::default()).await;
    assert_eq!(after, before, "a refused call of {who} changed something");
}

async fn assert_all_granted(client: &Client, target: &Target, rpcs: &[Rpc], who: &str) {
    for rpc in rpcs {
        if let Err(status) = rpc.call(client, target).await {
            panic!("{rpc:?} by {who}: {status:?}");
        }
    }
}

/// The newest thousand events that a query is answered with.
async fn events(client: &Client, query: ListEventsRequest) -> Vec<Event> {
    let query = ListEventsRequest {
        page_size: 1000,
        ..query
    };
    let answer = client.events.clone().list_events(query).await;
    answer.expect("events").into_inner().events
}

/// All events but those of making callers.
async fn events_but_of_callers(admin: &Client) -> Vec<Event> {
    let mut events = events(admin, ListEventsRequest::default()).await;
    events.retain(|event| event.owner_id != CALLER);
    events
}

async fn get(admin: &Client, key: &Key) -> Key {
    let get = GetKeyRequest {
        key_id: key.key_id.clone(),
        tenant_id: String::new(),
    };
    let answer = admin.keys.clone().get_key(get).await;
    unused(answer.expect("a key").into_inner().key.expect("a key"))
}

const NOT_GRANTED: (Code, &str) = (Code::PermissionDenied, "ACTION_NOT_GRANTED");
const NOT_HELD: (Code, &str) = (Code::PermissionDenied, "SCOPE_NOT_HELD");
const STRONGER: (Code, &str) = (Code::PermissionDenied, "STRONGER_PRINCIPAL");
const MISSING: (Code, &str) = (Code::Unauthenticated, "CREDENTIAL_MISSING");
const INVALID: (Code, &str) = (Code::Unauthenticated, "CREDENTIAL_INVALID");

#[test]
fn these_are_all_the_rpcs_there_are() {
    let files = FileDescriptorSet::decode(DESCRIPTORS).expect("the descriptors can be read");
    let methods = files.file.iter().flat_map(|file| &file.service);
    let methods = methods.flat_map(|service| &service.method);
    let defined: BTreeSet<_> = methods.map(|method| method.name().to_owned()).collect();
    let called: BTreeSet<_> = ALL.iter().map(|rpc| format!("{rpc:?}")).collect();
    assert_eq!(called, defined);
    let granted = GRANTS.iter().flat_map(|(_, rpcs)| *rpcs);
    let granted: BTreeSet<_> = granted.map(|rpc| format!("{rpc:?}")).collect();
    assert_eq!(granted, defined);
}

on_both_engines! {
    async fn what_is_no_good_system_key_is_no_credential_for_any_rpc(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let target = Target::in_new_tenant(&admin, "acme").await;

        let (_, good) = admin.create(system_key(&["*"])).await;
        let (revoked, of_revoked) = admin.create(system_key(&["*"])).await;
        admin.revoke(&revoked, "").await;
        let (suspended, of_suspended) = admin.create(system_key(&["*"])).await;
        let suspended = Key {
            suspended: Some(true),
            ..suspended
        };
        let suspended = admin
            .keys
            .clone()
            .update_key(update(suspended, &["suspended"]))
            .await;
        suspended.expect("the key is suspended");
        let brief = prost_types::Duration {
            seconds: 0,
            nanos: 1000,
        };
        let expired = CreateKeyRequest {
            ttl: Some(brief),
            ..system_key(&["*"])
        };
        let (_, of_expired) = admin.create(expired).await;
        let (rotated, of_rotated) = admin.create(system_key(&["*"])).await;
        admin
            .keys
            .clone()
            .rotate_key(rotate(rotated))
            .await
            .expect("the key is rotated");
        let (_, of_tenant) = admin.issue("acme", &["*"]).await;

        for (what, credential) in [
            ("text that is no key", "swordfish".to_owned()),
            ("a key with a typo", format!("{good}x")),
            ("an unknown key", unknown()),
            ("a key with a wrong secret", with_another_secret(&good)),
            ("a revoked key", of_revoked),
            ("a suspended key", of_suspended),
            ("an expired key", of_expired),
            ("a key that was rotated away", of_rotated),
            ("a key of another tenant", of_tenant),
            (
                "a beginning of the admin token",
                server.admin_token()[..40].to_owned(),
            ),
        ] {
            let client = admin.with(&credential);
            assert_all_refused(&admin, &client, &target, ALL, INVALID, what).await;
        }
        let anonymous = server.client(None).await;
        assert_all_refused(&admin, &anonymous, &target, ALL, MISSING, "nobody").await;
        assert_all_granted(&admin.with(&good), &target, &ALL, "the good key").await;
    }

    async fn the_admin_token_may_do_everything(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let target = Target::in_new_tenant(&admin, "acme").await;
        assert_all_granted(&admin, &target, &ALL, "the admin").await;
        let target = Target::in_tenant(&admin, "system").await;
        assert_all_granted(&admin, &target, &ALL, "the admin, of system").await;
    }

    async fn a_key_to_validate_everywhere_may_validate_and_nothing_else(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (backend, _) = caller(&admin, &["*:keys:validate"]).await;
        for tenant in ["acme", "beta"] {
            let target = Target::in_new_tenant(&admin, tenant).await;
            for named in [tenant, ""] {
                assert_all_granted(&backend, &target.under(named), &VALIDATES, "a backend").await;
                let answer = ValidateRequest {
                    tenant_id: named.to_owned(),
                    ..ask(&target.plaintext)
                };
                assert!(backend.validate(answer).await.allowed);
            }
            let others = ALL.into_iter().filter(|rpc| !VALIDATES.contains(rpc));
            assert_all_refused(&admin, &backend, &target, others, NOT_GRANTED, "a backend").await;
        }
    }

    async fn each_action_grants_exactly_its_rpcs(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        admin.set_tenant(named("acme")).await;
        for (action, granted) in GRANTS {
            let target = Target::in_tenant(&admin, "acme").await;
            for tenant in ["acme", "*"] {
                let scope = format!("{tenant}:{action}");
                let (client, _) = caller(&admin, &[&scope]).await;
                let others = ALL.into_iter().filter(|rpc| !granted.contains(rpc));
                assert_all_refused(&admin, &client, &target, others, NOT_GRANTED, &scope).await;
                let target = Target::in_tenant(&admin, "acme").await;
                assert_all_granted(&client, &target, granted, &scope).await;
            }
        }
    }

    async fn a_tenants_admin_may_do_everything_in_it(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let target = Target::in_new_tenant(&admin, "acme").await;
        let (client, _) = caller(&admin, &["acme:*"]).await;
        assert_all_granted(&client, &target, &ALL, "acme's admin").await;
        let target = Target::in_tenant(&admin, "acme").await.under("");
        let unnamed = [Validate, BatchValidate, GetKey, LookupKey, UpdateKey, RotateKey];
        assert_all_granted(&client, &target, &unnamed, "acme's admin, naming no tenant").await;
    }

    async fn another_tenant_does_not_exist_for_a_tenants_admin_whether_it_exists_or_not(
        setup: Setup
    ) {
        let server = setup.start().await;
        let admin = server.admin().await;
        admin.set_tenant(named("acme")).await;
        let beta = Target::in_new_tenant(&admin, "beta").await;
        let system = Target::in_tenant(&admin, "system").await;
        let before = events_but_of_callers(&admin).await;

        let named = ALL.into_iter().filter(|rpc| *rpc != ListTenants).collect();
        let by_key = vec![Validate, BatchValidate, GetKey, LookupKey, UpdateKey, RotateKey];
        let by_key_in_acme = vec![Validate, BatchValidate, GetKey, LookupKey, UpdateKey, RotateKey, RevokeKey];
        let cases: [(&str, Vec<Rpc>); 3] = [
            ("their own tenant", named),
            ("no tenant", by_key),
            ("the caller's tenant", by_key_in_acme),
        ];
        for scope in [
            "acme:*",
            "acme:keys:*",
            "acme:keys:validate",
            "acme:owners:read",
        ] {
            let (client, _) = caller(&admin, &[scope]).await;
            for (under, rpc) in cases
                .iter()
                .flat_map(|(under, rpcs)| rpcs.iter().map(|rpc| (*under, *rpc)))
            {
                let collect = async |target: &Target| {
                    let target = match under {
                        "no tenant" => target.under(""),
                        "the caller's tenant" => target.under("acme"),
                        _ => target.clone(),
                    };
                    told(rpc.call(&client, &target).await)
                };
                let what = format!("{rpc:?} under {under} by {scope}");
                let of_none = collect(&Target::nowhere("gamma")).await;
                if scope == "acme:*" {
                    let code = if VALIDATES.contains(&rpc) {
                        Code::Ok
                    } else {
                        Code::NotFound
                    };
                    assert_eq!(of_none.0, code, "{what}: {of_none:?}");
                }
                for existing in [&beta, &system, &Target::nowhere("default")] {
                    let of_existing = collect(existing).await;
                    assert_eq!(of_existing, of_none, "{what}, of {}", existing.tenant_id);
                }
            }
        }
        assert_eq!(
            events_but_of_callers(&admin).await,
            before,
            "nothing was changed"
        );
    }

    async fn a_name_that_no_tenant_can_have_is_told_as_such_to_every_caller(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let target = Target::in_new_tenant(&admin, "acme")
            .await
            .under("Not a tenant");
        let (client, _) = caller(&admin, &["acme:*"]).await;
        for rpc in ALL.into_iter().filter(|rpc| *rpc != ListTenants) {
            for (client, who) in [(&admin, "the admin"), (&client, "acme's admin")] {
                let answer = rpc.call(client, &target).await;
                let what = format!("{rpc:?} by {who}");
                assert_refused(answer, Code::InvalidArgument, "INVALID_FIELDS", &what);
            }
        }
    }

    async fn lists_tell_a_tenants_admin_of_that_tenant_alone(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let beta = Target::in_new_tenant(&admin, "beta").await;
        Target::in_new_tenant(&admin, "acme").await;
        let (client, _) = caller(&admin, &["acme:*"]).await;

        let tenants = client
            .tenants
            .clone()
            .list_tenants(ListTenantsRequest::default())
            .await;
        let tenants = tenants.expect("tenants").into_inner().tenants;
        let ids: Vec<_> = tenants.into_iter().map(|tenant| tenant.tenant_id).collect();
        assert_eq!(ids, ["acme"]);

        let watch = WatchEventsRequest::default();
        let mut stream = client
            .events
            .clone()
            .watch_events(watch)
            .await
            .expect("a stream")
            .into_inner();
        // What comes while the stream is open, too; the last of it is acme's.
        Target::in_tenant(&admin, "beta").await;
        let last = Target::in_tenant(&admin, "acme").await.key_id;
        let mut watched = Vec::new();
        while watched
            .last()
            .is_none_or(|event: &Event| event.key_id != last)
        {
            watched.push(next_event(&mut stream).await);
        }
        watched.reverse();

        let listed = events(&client, ListEventsRequest::default()).await;
        let everything = events(&admin, ListEventsRequest::default()).await;
        let of_acme: Vec<_> = everything
            .iter()
            .filter(|event| event.tenant_id == "acme")
            .cloned()
            .collect();
        assert_eq!(of_acme.len(), 5, "a tenant, an owner twice, two keys");
        assert_eq!(listed, of_acme);
        assert_eq!(watched, of_acme);

        // Nor does a filter find what is not told of.
        for query in [
            ListEventsRequest {
                key_id: beta.key_id,
                ..ListEventsRequest::default()
            },
            ListEventsRequest {
                owner_id: CALLER.to_owned(),
                ..ListEventsRequest::default()
            },
        ] {
            assert_ne!(events(&admin, query.clone()).await, []);
            assert_eq!(events(&client, query).await, []);
        }
    }

    async fn lists_tell_of_the_tenants_in_which_the_caller_may_read(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let acme = Target::in_new_tenant(&admin, "acme").await;
        let beta = Target::in_new_tenant(&admin, "beta").await;
        Target::in_new_tenant(&admin, "delta").await;
        let scopes = [
            "acme:events:read",
            "acme:tenants:read",
            "beta:tenants:read",
            "delta:keys:get",
        ];
        let (client, _) = caller(&admin, &scopes).await;

        let mut told = Vec::new();
        let mut page_token = String::new();
        loop {
            let list = ListTenantsRequest {
                page_size: 1,
                page_token,
            };
            let page = client
                .tenants
                .clone()
                .list_tenants(list)
                .await
                .expect("tenants")
                .into_inner();
            told.extend(page.tenants.into_iter().map(|tenant| tenant.tenant_id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(told, ["acme", "beta"]);

        let listed = events(&client, ListEventsRequest::default()).await;
        assert_ne!(listed, []);
        assert!(
            listed.iter().all(|event| event.tenant_id == "acme"),
            "{listed:?}"
        );
        assert_all_granted(&client, &acme, &[ListEvents, WatchEvents], "a reader").await;
        let events = [ListEvents, WatchEvents];
        assert_all_refused(
            &admin,
            &client,
            &beta,
            events,
            NOT_GRANTED,
            "a reader of acme",
        )
        .await;
    }

    async fn a_right_in_one_tenant_is_none_in_another(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let acme = Target::in_new_tenant(&admin, "acme").await;
        let beta = Target::in_new_tenant(&admin, "beta").await;
        let (client, _) = caller(&admin, &["acme:keys:*", "beta:owners:*"]).await;
        let of_keys = &ALL[..9];
        let of_owners = [GetOwner, ListOwners, UpdateOwner, CreateOwner, DeleteOwner];
        assert_all_refused(
            &admin,
            &client,
            &acme,
            of_owners,
            NOT_GRANTED,
            "one of acme's keys",
        )
        .await;
        // Where it may do other things, the caller is told that it may not do this.
        let others = of_keys.iter().copied();
        assert_all_refused(
            &admin,
            &client,
            &beta,
            others,
            NOT_GRANTED,
            "one of beta's owners",
        )
        .await;
        assert_all_granted(&client, &acme, of_keys, "one of acme's keys").await;
        assert_all_granted(&client, &beta, &of_owners, "one of beta's owners").await;
    }

    async fn a_validator_of_one_tenant_finds_no_other_tenants_key(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let acme = Target::in_new_tenant(&admin, "acme").await;
        let beta = Target::in_new_tenant(&admin, "beta").await;
        let (client, _) = caller(&admin, &["acme:keys:validate"]).await;
        assert!(client.validate(ask(&acme.plaintext)).await.allowed);
        assert_eq!(admin.reason(&beta.plaintext).await, Reason::Allowed);
        let of_unknown = client.validate(ask(&unknown())).await;
        assert_eq!(of_unknown.reason(), Reason::NotFound);
        for tenant_id in ["", "acme", "beta", "gamma"] {
            let question = ValidateRequest {
                tenant_id: tenant_id.to_owned(),
                ..ask(&beta.plaintext)
            };
            assert_eq!(
                client.validate(question).await,
                of_unknown,
                "asked of {tenant_id:?}"
            );
        }
    }
}

/// All that an answer tells: code, message, and the details or the answer itself.
fn told(answer: Result<Vec<u8>, Status>) -> (Code, String, Vec<u8>) {
    match answer {
        Ok(answer) => (Code::Ok, String::new(), answer),
        Err(status) => {
            error_reason(&status);
            let details = status.details().to_vec();
            (status.code(), status.message().to_owned(), details)
        }
    }
}

// Nobody grants in tenant `system` what they do not hold. The one who tries holds `system:*`.

on_both_engines! {
    async fn nobody_creates_a_system_key_with_scopes_that_they_do_not_hold(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (steward, _) = caller(&admin, &["system:*"]).await;
        let (held, not_held) = scopes_for_a_steward();
        for scopes in held {
            steward.create(system_key(scopes)).await;
        }
        for scopes in not_held {
            let answer = steward.try_create(system_key(scopes)).await;
            assert_refused(answer, NOT_HELD.0, NOT_HELD.1, &format!("{scopes:?}"));
        }
        // Elsewhere a scope is no right over gatekey, and anybody may grant it.
        admin.set_tenant(named("acme")).await;
        let (client, _) = caller(&admin, &["acme:keys:create"]).await;
        client.issue("acme", &["*"]).await;
    }

    async fn nobody_updates_a_system_key_to_what_they_do_not_hold(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (steward, _) = caller(&admin, &["system:*"]).await;
        let (weak, _) = admin.create(system_key(&["system:keys:list"])).await;
        let (held, not_held) = scopes_for_a_steward();
        for scopes in held {
            let key = Key {
                scopes: texts(scopes),
                ..weak.clone()
            };
            let answer = steward
                .keys
                .clone()
                .update_key(update(key, &["scopes"]))
                .await;
            let key = answer.expect("it is held").into_inner().key.expect("a key");
            assert_eq!(key.scopes, texts(scopes));
        }
        let before = get(&admin, &weak).await;
        for scopes in not_held {
            let key = Key {
                scopes: texts(scopes),
                ..weak.clone()
            };
            let answer = steward
                .keys
                .clone()
                .update_key(update(key, &["scopes"]))
                .await;
            assert_refused(answer, NOT_HELD.0, NOT_HELD.1, &format!("{scopes:?}"));
        }
        assert_eq!(get(&admin, &weak).await, before);

        // To widen where or when a stronger key works is to grant what it grants.
        let bound = CreateKeyRequest {
            audiences: texts(&["elsewhere"]),
            allowed_cidrs: texts(&["192.0.2.0/24"]),
            ttl: Some(prost_types::Duration {
                seconds: 3600,
                nanos: 0,
            }),
            ..system_key(&["*"])
        };
        let (strong, _) = admin.create(bound).await;
        let suspended = Key {
            suspended: Some(true),
            ..strong.clone()
        };
        let suspended = admin
            .keys
            .clone()
            .update_key(update(suspended, &["suspended"]))
            .await;
        let before = suspended
            .expect("the key is suspended")
            .into_inner()
            .key
            .expect("a key");
        for path in ["suspended", "audiences", "allowed_cidrs", "expires_at"] {
            let free = Key {
                key_id: strong.key_id.clone(),
                ..Key::default()
            };
            let answer = steward.keys.clone().update_key(update(free, &[path])).await;
            assert_refused(answer, STRONGER.0, STRONGER.1, path);
        }
        assert_eq!(get(&admin, &strong).await, before);
    }

    async fn nobody_rotates_a_system_key_that_is_stronger_than_theirs(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (steward, _) = caller(&admin, &["system:*"]).await;
        let (held, not_held) = scopes_for_a_steward();
        for scopes in not_held {
            let (strong, plaintext) = admin.create(system_key(scopes)).await;
            let answer = steward
                .keys
                .clone()
                .rotate_key(rotate(strong.clone()))
                .await;
            assert_refused(answer, STRONGER.0, STRONGER.1, &format!("{scopes:?}"));
            assert_eq!(get(&admin, &strong).await, strong, "it has no successor");
            assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
        }
        // What an owner's record takes from a key now, it may give back later.
        admin
            .set_owner(system_owner("narrow", &["system:keys:list"]))
            .await;
        let strong = CreateKeyRequest {
            owner_id: "narrow".to_owned(),
            ..system_key(&["*"])
        };
        let (strong, _) = admin.create(strong).await;
        let answer = steward.keys.clone().rotate_key(rotate(strong)).await;
        assert_refused(
            answer,
            STRONGER.0,
            STRONGER.1,
            "a key that its owner narrows",
        );

        for scopes in held {
            let (weak, _) = admin.create(system_key(scopes)).await;
            let answer = steward.keys.clone().rotate_key(rotate(weak)).await;
            answer.expect("a key that is no stronger is rotated");
        }
    }

    async fn nobody_puts_a_system_owner_with_scopes_that_they_do_not_hold_or_deletes_one(
        setup: Setup
    ) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (steward, _) = caller(&admin, &["system:*"]).await;
        let (held, not_held) = scopes_for_a_steward();
        for scopes in held {
            steward.set_owner(system_owner("team", scopes)).await;
        }
        let before = events(&admin, ListEventsRequest::default()).await;
        for scopes in not_held {
            let owner = whole_owner(system_owner("team", scopes));
            let answer = steward.owners.clone().update_owner(owner).await;
            assert_refused(answer, NOT_HELD.0, NOT_HELD.1, &format!("{scopes:?}"));
            let owner = Some(system_owner("another team", scopes));
            let create = CreateOwnerRequest { owner };
            let answer = steward.owners.clone().create_owner(create).await;
            assert_refused(answer, NOT_HELD.0, NOT_HELD.1, &format!("{scopes:?}"));
        }
        // Without the record the owner's keys would be bounded by nothing.
        let delete = DeleteOwnerRequest {
            tenant_id: "system".to_owned(),
            owner_id: "team".to_owned(),
            revoke_keys: true,
        };
        let answer = steward.owners.clone().delete_owner(delete.clone()).await;
        assert_refused(answer, NOT_HELD.0, NOT_HELD.1, "DeleteOwner");
        assert_eq!(events(&admin, ListEventsRequest::default()).await, before);

        let (root, _) = caller(&admin, &["*"]).await;
        root.set_owner(system_owner("team", &["*"])).await;
        root.owners
            .clone()
            .delete_owner(delete)
            .await
            .expect("one who holds everything may");
    }

    async fn nobody_puts_the_rules_of_tenant_system_who_does_not_hold_everything(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let before = events(&admin, ListEventsRequest::default()).await.len();
        for scopes in [
            &["system:*"][..],
            &["*:tenants:write"],
            &["*:*"],
            &["system:*", "*:*:*"],
        ] {
            let (client, _) = caller(&admin, scopes).await;
            let tenant = whole_tenant(named("system"));
            let answer = client.tenants.clone().update_tenant(tenant).await;
            assert_refused(answer, NOT_HELD.0, NOT_HELD.1, &format!("{scopes:?}"));
        }
        let events = events(&admin, ListEventsRequest::default()).await;
        assert_eq!(events.len(), before + 4, "keys were made, and nothing else");
        let (root, _) = caller(&admin, &["*"]).await;
        root.set_tenant(named("system")).await;
    }

    async fn what_a_callers_owner_does_not_have_the_caller_cannot_grant(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        admin.set_owner(system_owner(CALLER, &["system:*"])).await;
        let (steward, _) = caller(&admin, &["*"]).await;
        let other = CreateKeyRequest {
            owner_id: "other".to_owned(),
            ..system_key(&["*"])
        };
        let answer = steward.try_create(other).await;
        assert_refused(answer, NOT_HELD.0, NOT_HELD.1, "a key of another owner");
        let other = CreateKeyRequest {
            owner_id: "other".to_owned(),
            ..system_key(&["system:*"])
        };
        steward.create(other).await;
    }

    async fn a_product_tenants_key_is_no_credential_for_create_key(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        admin.set_tenant(named("plangrep")).await;
        for scopes in [&["*"][..], &["plangrep:*"], &["plangrep:keys:create"]] {
            let (_, plaintext) = admin.issue("plangrep", scopes).await;
            assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
            let client = admin.with(&plaintext);
            for tenant in ["plangrep", "system"] {
                let answer = client
                    .try_create(new_key(tenant, &["plangrep:keys:create"]))
                    .await;
                assert_refused(
                    answer,
                    INVALID.0,
                    INVALID.1,
                    &format!("a key of {tenant} for {scopes:?}"),
                );
            }
        }
        // The same scopes in tenant `system` are rights.
        let (client, _) = caller(&admin, &["plangrep:keys:create"]).await;
        client.issue("plangrep", &["*"]).await;
    }

    async fn a_system_keys_owner_limits_it(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let target = Target::in_new_tenant(&admin, "acme").await;
        let (client, _) = caller(&admin, &["*"]).await;
        let but_get = || ALL.into_iter().filter(|rpc| *rpc != GetKey);

        let reads = [GetKey, ListKeys, GetOwner, GetTenant];
        assert_all_granted(&client, &target, &reads, "an owner without a record").await;
        let owner = system_owner(CALLER, &["acme:keys:get"]);
        admin.set_owner(owner.clone()).await;
        assert_all_granted(&client, &target, &[GetKey], "one who may get").await;
        assert_all_refused(
            &admin,
            &client,
            &target,
            but_get(),
            NOT_GRANTED,
            "one who may get",
        )
        .await;

        admin
            .set_owner(Owner {
                suspended: Some(true),
                ..owner.clone()
            })
            .await;
        assert_all_refused(&admin, &client, &target, ALL, INVALID, "a suspended owner").await;

        admin.set_owner(system_owner(CALLER, &[])).await;
        assert_all_refused(
            &admin,
            &client,
            &target,
            ALL,
            NOT_GRANTED,
            "an owner without scopes",
        )
        .await;

        admin
            .set_owner(Owner {
                audiences: texts(&["elsewhere"]),
                ..owner.clone()
            })
            .await;
        assert_all_refused(&admin, &client, &target, ALL, INVALID, "an owner elsewhere").await;

        let here = texts(&["elsewhere", "gatekey"]);
        admin
            .set_owner(Owner {
                audiences: here,
                ..owner
            })
            .await;
        assert_all_granted(&client, &target, &[GetKey], "an owner here, too").await;

        let delete = DeleteOwnerRequest {
            tenant_id: "system".to_owned(),
            owner_id: CALLER.to_owned(),
            revoke_keys: true,
        };
        let deleted = admin.owners.clone().delete_owner(delete).await;
        deleted.expect("the record and the key are gone");
        assert_all_refused(&admin, &client, &target, ALL, INVALID, "a deleted owner").await;
    }

    async fn a_system_key_works_only_from_its_networks(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let target = Target::in_new_tenant(&admin, "acme").await;
        for (cidrs, from_here) in [
            (&["127.0.0.1"][..], true),
            (&["127.0.0.0/8"], true),
            (&["192.0.2.0/24", "127.0.0.1/32"], true),
            (&["::ffff:127.0.0.0/104"], true),
            (&["0.0.0.0/0"], true),
            (&["127.0.0.2"], false),
            (&["10.0.0.0/8"], false),
            (&["::1/128"], false),
            (&["::/0"], false),
        ] {
            let request = CreateKeyRequest {
                allowed_cidrs: texts(cidrs),
                ..system_key(&["*"])
            };
            let (_, plaintext) = admin.create(request).await;
            let client = admin.with(&plaintext);
            if from_here {
                assert_all_granted(&client, &target, &[GetKey, Validate], &format!("{cidrs:?}"))
                    .await;
            } else {
                assert_all_refused(
                    &admin,
                    &client,
                    &target,
                    ALL,
                    INVALID,
                    &format!("{cidrs:?}"),
                )
                .await;
            }
        }
    }

    async fn what_was_done_names_the_callers_key_or_the_admin(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let target = Target::in_new_tenant(&admin, "acme").await;
        let (client, key) = caller(&admin, &["acme:*"]).await;
        assert_eq!(key.created_by, "admin");
        let (second, _) = admin.issue("acme", &["jobs:read"]).await;
        assert_all_granted(&client, &target, &ALL, "acme's admin").await;

        let list = ListKeysRequest {
            tenant_id: "acme".to_owned(),
            ..ListKeysRequest::default()
        };
        let keys = admin
            .keys
            .clone()
            .list_keys(list)
            .await
            .expect("keys")
            .into_inner()
            .keys;
        let of_admin = [&target.key_id, &second.key_id];
        assert_eq!(
            keys.len(),
            4,
            "the two, one that was created and one that was rotated to"
        );
        for made in keys {
            let by = if of_admin.contains(&&made.key_id) {
                "admin"
            } else {
                &key.key_id
            };
            assert_eq!(made.created_by, by);
            assert_eq!(made.state(), KeyState::Revoked);
            assert_eq!(made.revoked_by, key.key_id, "by RevokeKey or by RevokeKeys");
        }

        let by = |actor: &str| ListEventsRequest {
            tenant_id: "acme".to_owned(),
            actor: actor.to_owned(),
            ..ListEventsRequest::default()
        };
        let done: Vec<_> = events(&admin, by(&key.key_id))
            .await
            .iter()
            .rev()
            .map(Event::r#type)
            .collect();
        let everything = [
            EventType::KeyCreated,
            EventType::KeyUpdated,
            EventType::KeyRotated,
            EventType::KeyRevoked,
            EventType::KeysRevoked,
            EventType::OwnerUpdated,
            EventType::OwnerDeleted,
            EventType::OwnerCreated,
            EventType::TenantUpdated,
        ];
        assert_eq!(done, everything);
        let of_admin = events(&admin, by("admin")).await;
        assert!(
            of_admin.iter().all(|event| event.actor == "admin"),
            "{of_admin:?}"
        );
        let all = events(&admin, by("")).await;
        assert_eq!(
            all.len(),
            everything.len() + of_admin.len(),
            "nobody else was there"
        );

        let (third, _) = admin.issue("acme", &["jobs:read"]).await;
        let revoked = admin.revoke(&third, "").await.key.expect("a key");
        assert_eq!(revoked.revoked_by, "admin");
    }

    async fn what_a_caller_had_begun_when_its_key_was_revoked_changes_nothing_afterwards(
        setup: Setup
    ) {
        // A hash that takes its time.
        let server = setup.unset("GATEKEY_ARGON2").start().await;
        let admin = server.admin().await;
        let (client, key) = caller(&admin, &["*"]).await;
        // Many more than can be hashed at once: the others wait.
        let mut begun = JoinSet::new();
        for _ in 0..100 {
            let client = client.clone();
            begun.spawn(async move { client.try_create(system_key(&["*"])).await });
        }
        let first = begun
            .join_next()
            .await
            .expect("100 calls")
            .expect("no panic");
        first.expect("the key is good still");
        let revocation = admin.revoke(&key, "stolen").await;
        assert_eq!(
            revocation.enforcement.expect("enforcement").state(),
            EnforcementState::Enforced
        );
        let revoked = revocation.key.expect("a key").revision;

        let answers = begun.join_all().await;
        let by_it = ListEventsRequest {
            actor: key.key_id,
            ..ListEventsRequest::default()
        };
        let mut late = events(&admin, by_it).await;
        late.retain(|event| event.revision > revoked);
        assert!(
            late.is_empty(),
            "{} keys were made after the revocation",
            late.len()
        );
        let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
        assert_ne!(
            refused.len(),
            0,
            "some were waiting when the key was revoked"
        );
        for status in refused {
            assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        }
    }

    async fn a_stream_of_events_ends_with_its_callers_key(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (client, key) = caller(&admin, &["*:events:read"]).await;
        let watch = WatchEventsRequest::default();
        let stream = client.events.clone().watch_events(watch).await;
        let mut stream = stream.expect("a stream").into_inner();
        next_event(&mut stream).await;
        let revoked = admin
            .revoke(&key, "stolen")
            .await
            .key
            .expect("a key")
            .revision;
        admin.issue("default", &["jobs:read"]).await;
        let end = loop {
            let message = tokio::time::timeout(DEADLINE, stream.message()).await;
            match message.expect("the stream ends or goes on") {
                Ok(Some(told)) => {
                    let Some(Message::Event(event)) = told.message else {
                        panic!("no event: {told:?}");
                    };
                    assert!(
                        event.revision <= revoked,
                        "told after the revocation: {event:?}"
                    );
                }
                Ok(None) => panic!("it ended without a status"),
                Err(status) => break status,
            }
        };
        assert_eq!(end.code(), Code::Unauthenticated, "{end:?}");
    }

    async fn without_a_check_anybody_may_validate_and_nothing_else(setup: Setup) {
        let server = setup.env("GATEKEY_VALIDATE_AUTH", "none").start().await;
        let admin = server.admin().await;
        let target = Target::in_new_tenant(&admin, "acme").await;
        let others = || ALL.into_iter().filter(|rpc| !VALIDATES.contains(rpc));
        let anonymous = server.client(None).await;
        assert_eq!(anonymous.reason(&target.plaintext).await, Reason::Allowed);
        assert_eq!(anonymous.reason(&unknown()).await, Reason::NotFound);
        assert_all_granted(&anonymous, &target, &VALIDATES, "nobody").await;
        assert_all_refused(&admin, &anonymous, &target, others(), MISSING, "nobody").await;

        let stranger = admin.with("swordfish");
        assert_eq!(stranger.reason(&target.plaintext).await, Reason::Allowed);
        assert_all_refused(&admin, &stranger, &target, others(), INVALID, "a stranger").await;
        assert_all_granted(&admin, &target, &ALL, "the admin").await;
    }
}

/// Scopes that one with `system:*` may grant in tenant `system`, and such that it may not.
fn scopes_for_a_steward() -> ([&'static [&'static str]; 3], [&'static [&'static str]; 7]) {
    let held = [
        &["system:keys:create"][..],
        &["system:*:read", "system:keys:list"],
        &["system:*"],
    ];
    let not_held = [
        &["*"][..],
        &["*:*"],
        &["acme:*"],
        &["*:keys:validate"],
        &["system"],
        &["default:keys:get"],
        &["system:keys:list", "acme:keys:list"],
    ];
    (held, not_held)
}

#[tokio::test]
async fn an_authorization_that_is_no_bearer_is_no_credential() {
    let server = Engine::Sqlite.setup().await.start().await;
    let token = server.admin_token();
    let basic = {
        use base64::prelude::{BASE64_STANDARD, Engine as _};
        BASE64_STANDARD.encode(format!("admin:{token}"))
    };
    let channel = server.client(None).await.channel;
    let call = async |name: &'static str, value: &str| {
        let mut request = Request::new(new_key("default", &["jobs:read"]));
        let value = value.parse().expect("an ASCII value");
        request.metadata_mut().insert(name, value);
        KeyServiceClient::new(channel.clone())
            .create_key(request)
            .await
    };
    for value in [
        &token,
        "",
        "Bearer",
        "Bearer ",
        &format!("Basic {basic}"),
        &format!("Token {token}"),
        &format!("Bearer{token}"),
        &format!("Bearer {token}, Bearer {token}"),
        &format!("Bearer \"{token}\""),
    ] {
        let status = call("authorization", value)
            .await
            .expect_err("no credential");
        assert_eq!(status.code(), Code::Unauthenticated, "{value}");
        let reason = error_reason(&status);
        assert!([MISSING.1, INVALID.1].contains(&&*reason), "{reason}");
        assert!(status.get_error_details().bad_request().is_none());
    }
    for name in ["x-api-key", "proxy-authorization"] {
        let answer = call(name, &format!("Bearer {token}")).await;
        assert_refused(answer, MISSING.0, MISSING.1, name);
    }
    // RFC 9110: a scheme's case does not matter; 1 or more spaces follow it.
    for value in [
        format!("Bearer {token}"),
        format!("bearer {token}"),
        format!("BEARER   {token} "),
    ] {
        let answer = call("authorization", &value).await;
        answer.unwrap_or_else(|status| panic!("{value}: {status:?}"));
    }
}
