//! OwnerService and TenantService, as the contract has them: records that are set, read back and listed.
#![allow(
    clippy::assigning_clones,
    clippy::items_after_statements,
    clippy::unwrap_used,
    reason = "in a test, short tables; clippy takes only functions with `#[test]` for tests"
)]

use gatekey::api::proto::{
    CreateOwnerRequest, CreateTenantRequest, DeleteOwnerRequest, DeleteOwnerResponse,
    EnforcementState, GetOwnerRequest, GetTenantRequest, ListOwnersRequest, ListOwnersResponse,
    ListTenantsRequest, ListTenantsResponse, OnLimit, Owner, Tenant,
};
use prost_types::Duration;
use tonic::{Code, Status};

use crate::{
    contract_keys::{refused, sorted, span, start},
    support::{
        Client,
        client::{bad_fields, texts, whole_owner, whole_tenant},
        on_both_engines,
    },
};

fn owner(tenant: &str, owner: &str) -> Owner {
    Owner {
        tenant_id: tenant.to_owned(),
        owner_id: owner.to_owned(),
        ..Owner::default()
    }
}

async fn try_set_owner(client: &Client, owner: Owner) -> Result<Owner, Status> {
    let answer = client
        .owners
        .clone()
        .update_owner(whole_owner(owner))
        .await?;
    let answer = answer.into_inner();
    let state = answer.enforcement.expect("enforcement").state();
    assert_eq!(state, EnforcementState::Enforced);
    Ok(answer.owner.expect("an owner"))
}

async fn get_owner(client: &Client, tenant: &str, owner: &str) -> Result<Owner, Status> {
    let request = GetOwnerRequest {
        tenant_id: tenant.to_owned(),
        owner_id: owner.to_owned(),
    };
    let answer = client.owners.clone().get_owner(request).await?;
    Ok(answer.into_inner().owner.expect("an owner"))
}

async fn delete_owner(
    client: &Client,
    tenant: &str,
    owner: &str,
) -> Result<DeleteOwnerResponse, Status> {
    let request = DeleteOwnerRequest {
        tenant_id: tenant.to_owned(),
        owner_id: owner.to_owned(),
        revoke_keys: false,
    };
    Ok(client
        .owners
        .clone()
        .delete_owner(request)
        .await?
        .into_inner())
}

async fn list_owners(
    client: &Client,
    tenant: &str,
    page_size: i32,
    page_token: &str,
) -> Result<ListOwnersResponse, Status> {
    let request = ListOwnersRequest {
        tenant_id: tenant.to_owned(),
        page_size,
        page_token: page_token.to_owned(),
    };
    Ok(client
        .owners
        .clone()
        .list_owners(request)
        .await?
        .into_inner())
}

fn tenant(tenant: &str) -> Tenant {
    Tenant {
        tenant_id: tenant.to_owned(),
        ..Tenant::default()
    }
}

async fn try_set_tenant(client: &Client, tenant: Tenant) -> Result<Tenant, Status> {
    let answer = client
        .tenants
        .clone()
        .update_tenant(whole_tenant(tenant))
        .await?;
    let answer = answer.into_inner();
    let state = answer.enforcement.expect("enforcement").state();
    assert_eq!(state, EnforcementState::Enforced);
    Ok(answer.tenant.expect("a tenant"))
}

async fn get_tenant(client: &Client, tenant: &str) -> Result<Tenant, Status> {
    let request = GetTenantRequest {
        tenant_id: tenant.to_owned(),
    };
    let answer = client.tenants.clone().get_tenant(request).await?;
    Ok(answer.into_inner().tenant.expect("a tenant"))
}

async fn list_tenants(
    client: &Client,
    page_size: i32,
    page_token: &str,
) -> Result<ListTenantsResponse, Status> {
    let request = ListTenantsRequest {
        page_size,
        page_token: page_token.to_owned(),
    };
    let answer = client.tenants.clone().list_tenants(request).await?;
    Ok(answer.into_inner())
}

type ChangeTenant = fn(&mut Tenant);

/// What makes a good tenant a wrong one, by the field that is then named.
const WRONG_TENANTS: &[(&str, ChangeTenant)] = &[
    ("tenant.tenant_id", |t| t.tenant_id.clear()),
    ("tenant.tenant_id", |t| t.tenant_id.push('a')),
    ("tenant.tenant_id", |t| t.tenant_id = "a_b".to_owned()),
    ("tenant.display_name", |t| t.display_name.push('a')),
    ("tenant.display_name", |t| {
        t.display_name = "a\nb".to_owned();
    }),
    ("tenant.key_prefix", |t| t.key_prefix.push('a')),
    ("tenant.key_prefix", |t| t.key_prefix = "9a".to_owned()),
    ("tenant.key_prefix", |t| t.key_prefix = "_a".to_owned()),
    ("tenant.key_prefix", |t| t.key_prefix = "a_".to_owned()),
    ("tenant.key_prefix", |t| t.key_prefix = "aB".to_owned()),
    ("tenant.key_prefix", |t| t.key_prefix = "a-b".to_owned()),
    ("tenant.scope_catalog", |t| {
        t.scope_catalog.push("one:more".to_owned());
    }),
    ("tenant.scope_catalog[1]", |t| {
        t.scope_catalog[1] = "a b".to_owned();
    }),
    ("tenant.default_ttl", |t| t.default_ttl = span(0)),
    ("tenant.default_ttl", |t| t.default_ttl = span(-1)),
    ("tenant.max_ttl", |t| t.max_ttl = span(-1)),
    ("tenant.max_active_keys_per_owner", |t| {
        t.max_active_keys_per_owner = -1;
    }),
    ("tenant.on_limit", |t| t.on_limit = 99),
    ("tenant.required_owner_scope", |t| {
        t.required_owner_scope = "a b".to_owned();
    }),
    ("tenant.required_owner_scope", |t| {
        t.required_owner_scope = "keys:*".to_owned();
    }),
    ("tenant.basic_usernames[0]", |t| {
        t.basic_usernames[0] = "a:b".to_owned();
    }),
    ("tenant.basic_usernames[0]", |t| {
        t.basic_usernames[0].clear();
    }),
];

fn full_tenant() -> Tenant {
    Tenant {
        tenant_id: "t".repeat(63),
        display_name: "Ü".repeat(255),
        suspended: Some(true),
        key_prefix: format!("a{}9", "_".repeat(22)),
        scope_catalog: (0..256).map(|n| format!("jobs:{n}:*")).collect(),
        default_ttl: Some(Duration {
            seconds: 90,
            nanos: 500_000_000,
        }),
        max_ttl: span(86_400),
        require_expiry: true,
        max_active_keys_per_owner: i32::MAX,
        on_limit: OnLimit::ReplaceOldest.into(),
        require_owner: true,
        required_owner_scope: "keys:use".to_owned(),
        basic_usernames: texts(&["api", "bot ü"]),
        revision: 0,
        unreadable: false,
    }
}

on_both_engines! {
    async fn an_owner_is_kept_as_set_and_set_again_is_replaced(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let whole = Owner {
            scopes: texts(&["jobs:*", "*", "edit_orders"]),
            audiences: texts(&["web", "a b/ü"]),
            suspended: Some(true),
            display_name: "Ü".repeat(255),
            ..owner("default", &format!("{}a", "é".repeat(127)))
        };
        let set = try_set_owner(&admin, whole.clone()).await.unwrap();
        assert_eq!(set, Owner { revision: set.revision, ..whole.clone() });
        assert!(set.revision > 0);
        assert_eq!(get_owner(&admin, "default", &whole.owner_id).await.unwrap(), set);

        let bare = owner("default", &whole.owner_id);
        let again = try_set_owner(&admin, bare.clone()).await.unwrap();
        assert_eq!(again, Owner { revision: again.revision, suspended: Some(false), ..bare });
        assert!(again.revision > set.revision);
        assert_eq!(get_owner(&admin, "default", &whole.owner_id).await.unwrap(), again);
    }

    async fn an_owner_is_of_one_tenant_and_gone_once_deleted(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        try_set_tenant(&admin, tenant("acme")).await.unwrap();
        let here = try_set_owner(&admin, Owner { suspended: Some(true), ..owner("default", "alice") }).await.unwrap();
        let there = try_set_owner(&admin, owner("acme", "alice")).await.unwrap();

        let answer = delete_owner(&admin, "default", "alice").await.unwrap();
        let deleted = answer.owner.unwrap();
        assert_eq!(deleted, Owner { revision: deleted.revision, ..here });
        assert!(deleted.revision > there.revision, "the revision of its deletion");
        assert_eq!(answer.enforcement.unwrap().state(), EnforcementState::Enforced);
        for (tenant, name) in [("default", "alice"), ("acme", "Alice"), ("nowhere", "alice")] {
            refused(get_owner(&admin, tenant, name).await, Code::NotFound, "OWNER_NOT_FOUND");
            refused(delete_owner(&admin, tenant, name).await, Code::NotFound, "OWNER_NOT_FOUND");
        }
        assert_eq!(get_owner(&admin, "acme", "alice").await.unwrap(), there);
        refused(try_set_owner(&admin, owner("nowhere", "alice")).await, Code::NotFound, "TENANT_NOT_FOUND");
    }

    async fn owners_are_listed_by_their_ids_in_pages(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        try_set_tenant(&admin, tenant("acme")).await.unwrap();
        assert_eq!(list_owners(&admin, "acme", 0, "").await.unwrap(), ListOwnersResponse::default());
        let mut names: Vec<_> = (0..49).map(|n| format!("owner {:02}", n * 31 % 49)).collect();
        names.extend(texts(&["Zoe", "ä"]));
        for name in &names {
            try_set_owner(&admin, owner("acme", name)).await.unwrap();
        }
        try_set_owner(&admin, owner("default", "elsewhere")).await.unwrap();
        let names = sorted(names);

        let first = list_owners(&admin, "acme", 0, "").await.unwrap();
        let rest = list_owners(&admin, "acme", 0, &first.next_page_token).await.unwrap();
        assert_eq!((first.owners.len(), &*rest.next_page_token), (50, ""));
        let listed: Vec<_> = first.owners.iter().chain(&rest.owners).map(|owner| owner.owner_id.clone()).collect();
        assert_eq!(listed, names);
        assert_eq!(first.owners[0], get_owner(&admin, "acme", &names[0]).await.unwrap());

        let whole = list_owners(&admin, "acme", 51, "").await.unwrap();
        assert_eq!((whole.owners.len(), &*whole.next_page_token), (51, ""));
        let error = list_owners(&admin, "default", 0, &first.next_page_token).await.unwrap_err();
        assert_eq!(bad_fields(&error), ["page_token"]);
        let error = list_owners(&admin, "", -1, "x").await.unwrap_err();
        assert_eq!(sorted(bad_fields(&error)), ["page_size", "page_token", "tenant_id"]);
        refused(list_owners(&admin, "nowhere", 0, "").await, Code::NotFound, "TENANT_NOT_FOUND");
    }

    async fn all_that_is_wrong_with_an_owner_is_told_at_once(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let limits = Owner {
            scopes: (0..256).map(|n| format!("s{n}")).collect(),
            audiences: (0..64).map(|n| format!("{n:0>255}")).collect(),
            ..owner("default", "alice")
        };
        try_set_owner(&admin, limits.clone()).await.unwrap();
        let mut over = limits.clone();
        over.scopes.push("one:more".to_owned());
        over.audiences.push("one more".to_owned());
        over.display_name = "d".repeat(256);
        over.owner_id = "o".repeat(256);
        over.tenant_id.clear();
        let error = refused(try_set_owner(&admin, over).await, Code::InvalidArgument, "INVALID_FIELDS");
        let wrong = ["owner.audiences", "owner.display_name", "owner.owner_id", "owner.scopes", "owner.tenant_id"];
        assert_eq!(sorted(bad_fields(&error)), wrong);

        let bad = Owner {
            scopes: texts(&["a", "a b"]),
            audiences: texts(&["", "web"]),
            display_name: "a\tb".to_owned(),
            owner_id: "a\u{0}b".to_owned(),
            ..limits
        };
        let error = try_set_owner(&admin, bad).await.unwrap_err();
        let wrong = ["owner.audiences[0]", "owner.display_name", "owner.owner_id", "owner.scopes[1]"];
        assert_eq!(sorted(bad_fields(&error)), wrong);
        let nobody = admin.owners.clone().create_owner(CreateOwnerRequest { owner: None }).await.unwrap_err();
        assert_eq!(sorted(bad_fields(&nobody)), ["owner.owner_id", "owner.tenant_id"]);
        for error in [get_owner(&admin, "", "").await.unwrap_err(), delete_owner(&admin, "", "").await.unwrap_err()] {
            assert_eq!(sorted(bad_fields(&error)), ["owner_id", "tenant_id"]);
        }
    }

    async fn tenants_default_and_system_are_there_from_the_start(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let all = list_tenants(&admin, 0, "").await.unwrap();
        assert_eq!(all.tenants.iter().map(|tenant| &*tenant.tenant_id).collect::<Vec<_>>(), ["default", "system"]);
        for listed in all.tenants {
            assert_eq!(get_tenant(&admin, &listed.tenant_id).await.unwrap(), listed);
            // They begin without any rule.
            let free = Tenant {
                display_name: listed.display_name.clone(),
                on_limit: OnLimit::Reject.into(),
                suspended: Some(false),
                revision: listed.revision,
                ..tenant(&listed.tenant_id)
            };
            assert_eq!(listed, free);
        }
    }

    async fn a_tenant_is_kept_as_set_and_set_again_is_replaced(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let whole = full_tenant();
        let set = try_set_tenant(&admin, whole.clone()).await.unwrap();
        assert_eq!(set, Tenant { revision: set.revision, ..whole.clone() });
        assert!(set.revision > 0);
        assert_eq!(get_tenant(&admin, &whole.tenant_id).await.unwrap(), set);

        let bare = tenant(&whole.tenant_id);
        let again = try_set_tenant(&admin, bare.clone()).await.unwrap();
        assert_eq!(again, Tenant { revision: again.revision, on_limit: OnLimit::Reject.into(), suspended: Some(false), ..bare });
        assert!(again.revision > set.revision);
        assert_eq!(get_tenant(&admin, &whole.tenant_id).await.unwrap(), again);
        refused(get_tenant(&admin, "nowhere").await, Code::NotFound, "TENANT_NOT_FOUND");
    }

    async fn what_is_finer_than_a_microsecond_is_not_told_as_if_it_were_kept(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let fine = Tenant { max_ttl: Some(Duration { seconds: 90, nanos: 1_500 }), ..tenant("acme") };
        let set = try_set_tenant(&admin, fine).await.unwrap();
        assert_eq!(get_tenant(&admin, "acme").await.unwrap(), set);
    }

    async fn tenants_are_listed_by_their_ids_in_pages(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        for name in ["zeta", "acme", "9", "a-b"] {
            try_set_tenant(&admin, tenant(name)).await.unwrap();
        }
        let (mut pages, mut token) = (Vec::new(), String::new());
        loop {
            let page = list_tenants(&admin, 4, &token).await.unwrap();
            pages.push(page.tenants.into_iter().map(|tenant| tenant.tenant_id).collect::<Vec<_>>());
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(pages, [&["9", "a-b", "acme", "default"][..], &["system", "zeta"]]);
        for name in ["a", "b"] {
            try_set_owner(&admin, owner("acme", name)).await.unwrap();
        }
        let token = list_owners(&admin, "acme", 1, "").await.unwrap().next_page_token;
        let error = list_tenants(&admin, -1, &token).await.unwrap_err();
        assert_eq!(sorted(bad_fields(&error)), ["page_size", "page_token"]);
    }

    async fn each_thing_that_is_wrong_with_a_tenant_is_named(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        for (field, change) in WRONG_TENANTS {
            let mut wrong = full_tenant();
            change(&mut wrong);
            assert_eq!(bad_fields(&try_set_tenant(&admin, wrong).await.unwrap_err()), [*field]);
        }
        let mut wrong = full_tenant();
        for (_, change) in [4, 10, 12, 14, 15, 16, 17, 19, 21].map(|place| WRONG_TENANTS[place]) {
            change(&mut wrong);
        }
        let fields = [
            "tenant.basic_usernames[0]", "tenant.default_ttl", "tenant.display_name", "tenant.key_prefix",
            "tenant.max_active_keys_per_owner", "tenant.max_ttl", "tenant.on_limit", "tenant.required_owner_scope",
            "tenant.scope_catalog[1]",
        ];
        assert_eq!(sorted(bad_fields(&try_set_tenant(&admin, wrong).await.unwrap_err())), fields);
        let nobody = admin.tenants.clone().create_tenant(CreateTenantRequest { tenant: None }).await.unwrap_err();
        assert_eq!(bad_fields(&nobody), ["tenant.tenant_id"]);
        assert_eq!(bad_fields(&get_tenant(&admin, "").await.unwrap_err()), ["tenant_id"]);
        assert_eq!(list_tenants(&admin, 0, "").await.unwrap().tenants.len(), 2, "nothing was created");
    }
}
