//! `Check` itself, called as Envoy calls it.

use gatekey::api::{
    ext_authz::proto::{
        AttributeContext, CheckRequest, CheckResponse, Entry, attribute_context,
        authorization_client::AuthorizationClient, check_response::HttpResponse,
    },
    proto::{Owner, Tenant},
};
use tonic::{Code, Request, Status, transport::Channel};

use crate::support::{
    Authority, Client, Gatekey,
    client::{bad_fields, error_reason, texts},
    on_both_engines,
};

/// A Check of a request with this credential, by a rule with these entries.
fn check(key: &str, entries: &[(&'static str, &'static str)]) -> CheckRequest {
    let entry = |(key, value): &(&'static str, &'static str)| Entry {
        key: (*key).into(),
        value: (*value).into(),
    };
    let http = attribute_context::HttpRequest {
        method: "GET".into(),
        path: "/orders".into(),
        host: "api.example.com".into(),
        headers: vec![Entry {
            key: "authorization".into(),
            value: format!("Bearer {key}").into(),
        }],
        ..Default::default()
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            request: Some(attribute_context::Request { http: Some(http) }),
            context_extensions: entries.iter().map(entry).collect(),
            source: None,
        }),
    }
}

async fn call(
    channel: &Channel,
    credential: Option<&str>,
    check: CheckRequest,
) -> Result<CheckResponse, Status> {
    let mut request = Request::new(check);
    if let Some(credential) = credential {
        let value = format!("Bearer {credential}").parse().expect("ASCII");
        request.metadata_mut().insert("authorization", value);
    }
    let mut client = AuthorizationClient::new(channel.clone());
    Ok(client.check(request).await?.into_inner())
}

/// The status of the response to the client, and the code in its body.
fn told(response: &CheckResponse) -> (i32, String) {
    let status = response.status.as_ref().map_or(0, |status| status.code);
    match response.http_response.as_ref().expect("a response") {
        HttpResponse::OkResponse(_) => {
            assert_eq!(status, 0);
            (200, String::new())
        }
        HttpResponse::DeniedResponse(denied) => {
            let http = denied.status.as_ref().expect("a status").code;
            assert_eq!(status, if http == 401 { 16 } else { 7 });
            let body: serde_json::Value = serde_json::from_str(&denied.body).expect("JSON");
            let code = body["error"]["code"].as_str().expect("a code");
            (http, code.to_owned())
        }
    }
}

async fn acme(admin: &Client) {
    let tenant = Tenant {
        tenant_id: "acme".to_owned(),
        ..Tenant::default()
    };
    admin.set_tenant(tenant).await;
}

const RULE: &[(&str, &str)] = &[
    ("gatekey.tenant", "acme"),
    ("gatekey.scopes", "orders:read"),
];

on_both_engines! {
    async fn only_a_caller_that_may_validate_there_is_answered(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        acme(&admin).await;
        let (_, key) = admin.issue("acme", &["orders:read"]).await;
        let (_, everywhere) = admin.issue("system", &["*:keys:validate"]).await;
        let (_, of_acme) = admin.issue("system", &["acme:keys:validate"]).await;
        let (_, elsewhere) = admin.issue("system", &["other:keys:validate"]).await;
        let (_, reader) = admin.issue("system", &["acme:keys:get"]).await;
        let (_, mixed) = admin.issue("system", &["acme:keys:get", "other:keys:validate"]).await;
        let answer = async |credential: Option<&str>| {
            call(&admin.channel, credential, check(&key, RULE)).await
        };
        for credential in [&everywhere, &of_acme, &server.admin_token()] {
            let response = answer(Some(credential)).await.expect("a decision");
            assert_eq!(told(&response).0, 200);
        }
        // For that caller the tenant does not exist.
        let response = answer(Some(&elsewhere)).await.expect("a decision");
        assert_eq!(told(&response), (401, "NOT_FOUND".to_owned()));
        for (credential, code, reason) in [
            (None, Code::Unauthenticated, "CREDENTIAL_MISSING"),
            (Some(&*key), Code::Unauthenticated, "CREDENTIAL_INVALID"),
            (Some("gk_x"), Code::Unauthenticated, "CREDENTIAL_INVALID"),
            (Some(&*reader), Code::PermissionDenied, "ACTION_NOT_GRANTED"),
            (Some(&*mixed), Code::PermissionDenied, "ACTION_NOT_GRANTED"),
        ] {
            let status = answer(credential).await.expect_err("no decision");
            assert_eq!((status.code(), &*error_reason(&status)), (code, reason));
        }
    }

    async fn all_violations_of_a_rule_are_told_at_once(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let token = server.admin_token();
        let refused = async |entries: &[(&'static str, &'static str)]| {
            let answer = call(&admin.channel, Some(&token), check("x", entries)).await;
            bad_fields(&answer.expect_err("it is invalid"))
        };
        assert_eq!(
            refused(&[
                ("gatekey.tenant", "Acme"),
                ("gatekey.scopes", "a,*,,b"),
                ("gatekey.any_scopes", ""),
                ("gatekey.audience", ""),
                ("gatekey.header", "x y"),
                ("gatekey.query_parameter", "a&b"),
                ("gatekey.forward_credential", "yes"),
            ])
            .await,
            [
                "gatekey.forward_credential",
                "gatekey.tenant",
                "gatekey.scopes[1]",
                "gatekey.scopes[2]",
                "gatekey.any_scopes[0]",
                "gatekey.audience",
                "gatekey.header",
                "gatekey.query_parameter",
            ]
        );
        let unknown = ("gatekey.Scopes", "orders:read");
        assert_eq!(refused(&[RULE[0], unknown]).await, ["context_extensions"]);
        assert_eq!(refused(&[RULE[0], RULE[0]]).await, ["context_extensions"]);
        let mut scopes = check("x", RULE);
        let attributes = scopes.attributes.as_mut().expect("attributes");
        attributes.context_extensions[1].value = ["a"; 257].join(",").into();
        let answer = call(&admin.channel, Some(&token), scopes).await;
        assert_eq!(bad_fields(&answer.expect_err("too many")), ["gatekey.scopes"]);
        for empty in [CheckRequest::default(), CheckRequest { attributes: Some(AttributeContext::default()) }] {
            let answer = call(&admin.channel, Some(&token), empty).await;
            let fields = bad_fields(&answer.expect_err("no request"));
            assert_eq!(fields, ["attributes.request.http"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_is_a_caller_as_well() {
    let authority = Authority::new("ca");
    let server = Gatekey::sqlite().encrypted(&authority).start().await;
    let token = server.admin_token();
    let admin = server.encrypted(authority.trusted(), Some(&token)).await;
    let admin = admin.expect("no certificate is needed");
    acme(&admin).await;
    let owner = Owner {
        tenant_id: "system".to_owned(),
        owner_id: "spiffe://example.org/envoy".to_owned(),
        scopes: texts(&["acme:keys:validate"]),
        ..Owner::default()
    };
    admin.set_owner(owner).await;
    let (_, key) = admin.issue("acme", &["orders:read"]).await;
    for (name, allowed) in [
        ("spiffe://example.org/envoy", true),
        ("spiffe://example.org/x", false),
    ] {
        let tls = authority.issue(&[name]).shown(authority.trusted());
        let client = server.encrypted(tls, None).await.expect("a certificate");
        let answer = call(&client.channel, None, check(&key, RULE)).await;
        assert_eq!(answer.map(|it| told(&it).0).ok(), allowed.then_some(200));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_is_bounded_counted_and_traced_and_its_secrets_stay_out_of_the_log() {
    let server = Gatekey::sqlite()
        .env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0")
        .start()
        .await;
    let admin = server.admin().await;
    acme(&admin).await;
    let token = server.admin_token();
    let (_, key) = admin.issue("acme", &["orders:read"]).await;
    for _ in 0..3 {
        let answer = call(&admin.channel, Some(&token), check(&key, RULE)).await;
        assert_eq!(told(&answer.expect("a decision")).0, 200);
    }
    let answer = call(&admin.channel, Some(&token), check(&key, &[])).await;
    let response = answer.expect("a decision");
    assert_eq!(told(&response), (403, "NO_RULE".to_owned()));
    let mut large = check(&key, RULE);
    let attributes = large.attributes.as_mut().expect("attributes");
    let request = attributes.request.as_mut().expect("a request");
    let http = request.http.as_mut().expect("an HTTP request");
    http.headers.push(Entry {
        key: "cookie".into(),
        value: "x".repeat(64 * 1024).into(),
    });
    let answer = call(&admin.channel, Some(&token), large).await;
    let status = answer.expect_err("it is too large");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(error_reason(&status), "MESSAGE_TOO_LARGE");

    let page = super::metrics_of(&server);
    let method = "method=\"envoy.service.auth.v3.Authorization/Check\"";
    for line in [
        format!("gatekey_calls_total{{{method},code=\"OK\"}} 4"),
        format!("gatekey_calls_total{{{method},code=\"RESOURCE_EXHAUSTED\"}} 1"),
        "gatekey_decisions_total{reason=\"ALLOWED\"} 3".to_owned(),
        "gatekey_decisions_total{reason=\"NO_RULE\"} 1".to_owned(),
    ] {
        assert!(page.contains(&format!("\n{line}\n")), "{line}: {page}");
    }
    assert!(!server.logs().contains(&key), "no secret is logged");
}
