//! All that is done with secrets, well and badly, and what comes of it.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use gatekey::api::proto::{
    CreateKeyRequest, CreateOwnerRequest, DeleteTenantRequest, GetKeyRequest, Key,
    ListEventsRequest, ListKeysRequest, ListTenantsRequest, LookupKeyRequest, LookupKeyResponse,
    Owner, Reason, RevokeKeyRequest, RotateKeyRequest, Tenant, UpdateKeyRequest, ValidateRequest,
    ValidateResponse, WatchEventsRequest, key_service_client::KeyServiceClient,
};
use prost::Message;
use tonic::{Request, Status, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use crate::support::client::key_target;
use crate::support::{
    Client, Gatekey,
    client::{ask, ask_header, mask, new_key, texts, whole_owner, whole_tenant},
};

/// What was done with secrets, and what came of it.
pub struct Life {
    pub admin: Client,
    pub plaintexts: Vec<String>,
    /// Answers and errors, in all their forms, without the plaintext that an answer may hold.
    pub seen: Vec<String>,
}

impl Life {
    fn keep(&mut self, key: Option<Key>, plaintext: String) -> Key {
        self.plaintexts.push(plaintext);
        let key = key.expect("a key");
        self.seen.push(format!("{key:?}"));
        key
    }

    /// Keeps all that an error tells; `what` must fail.
    fn refused<T>(&mut self, what: &str, answer: Result<T, Status>) {
        let Err(status) = answer else {
            panic!("{what} was accepted");
        };
        let details = String::from_utf8_lossy(status.details()).into_owned();
        let told = format!("{status:?}\n{status}\n{details}\n{:?}", status.metadata());
        self.seen.push(format!("{what}: {told}"));
    }

    pub async fn issue_and_rotate(&mut self) {
        let admin = self.admin.clone();
        admin
            .set_tenant(Tenant {
                tenant_id: "acme".to_owned(),
                key_prefix: "pgk_live".to_owned(),
                basic_usernames: texts(&["api"]),
                ..Tenant::default()
            })
            .await;
        admin
            .set_owner(Owner {
                tenant_id: "acme".to_owned(),
                owner_id: "alice".to_owned(),
                scopes: texts(&["*"]),
                ..Owner::default()
            })
            .await;
        for (tenant, scopes) in [
            ("default", "jobs:*"),
            ("acme", "*"),
            ("acme", "*"),
            ("system", "acme:*"),
        ] {
            let request = CreateKeyRequest {
                request_id: format!("request-{}", self.plaintexts.len()),
                ..new_key(tenant, &[scopes])
            };
            let answer = admin.try_create(request.clone()).await.expect("a key");
            self.seen.push(format!("{answer:?}{answer:#?}"));
            self.keep(answer.key, answer.plaintext_key);
            self.refused("a repeated request", admin.try_create(request).await);
        }
        let key = admin.issue("acme", &["*"]).await;
        self.keep(Some(key.0.clone()), key.1);
        let request = RotateKeyRequest {
            key_id: key.0.key_id.clone(),
            overlap: prost_types::Duration::try_from(Duration::from_mins(5)).ok(),
            ..RotateKeyRequest::default()
        };
        let rotate = async || admin.keys.clone().rotate_key(request.clone()).await;
        let answer = rotate().await.expect("a key").into_inner();
        self.seen.push(format!("{answer:?}{answer:#?}"));
        let key = self.keep(answer.key, answer.plaintext_key);
        self.refused("a second rotation", rotate().await);
        self.seen
            .push(format!("{:?}", admin.revoke(&key, "over").await));
    }

    pub async fn look_up(&mut self) {
        let mut keys = self.admin.keys.clone();
        for plaintext in self.plaintexts.clone() {
            let request = |plaintext_key, tenant_id: &str| LookupKeyRequest {
                plaintext_key,
                tenant_id: tenant_id.to_owned(),
            };
            let found = keys.lookup_key(request(plaintext.clone(), "")).await;
            self.seen.push(format!("{:?}", found.expect("it is known")));
            let elsewhere = request(plaintext.clone(), "nowhere");
            self.refused("an unknown tenant", keys.lookup_key(elsewhere).await);
            let typo = request(typo(&plaintext), "");
            self.refused("a typo", keys.lookup_key(typo).await);
        }
    }

    pub async fn validate(&mut self) {
        for plaintext in self.plaintexts.clone() {
            let basic = |user: &str| {
                let pair = BASE64_STANDARD.encode(format!("{user}:{plaintext}"));
                format!("Basic {pair}")
            };
            for (credential, tenant, scope) in [
                (ask(&plaintext), "", ""),
                (ask(&plaintext), "acme", "jobs:read"),
                (ask(&plaintext), "default", "admin:everything"),
                (ask(&format!(" {plaintext}\n")), "", ""),
                (ask(&typo(&plaintext)), "", ""),
                (ask(&plaintext[..plaintext.len() - 10]), "", ""),
                (ask_header(&format!("Bearer {plaintext}")), "", ""),
                (ask_header(&format!("Bearer  {}", typo(&plaintext))), "", ""),
                (ask_header(&format!("Token {plaintext}")), "", ""),
                (ask_header(&plaintext), "", ""),
                (ask_header(&basic("api")), "", ""),
                (ask_header(&basic("nobody")), "", ""),
                (ask_header(&format!("Basic {plaintext}")), "", ""),
            ] {
                let mut request = credential;
                request.tenant_id = tenant.to_owned();
                request
                    .required_scopes
                    .extend((!scope.is_empty()).then(|| scope.to_owned()));
                self.seen.push(format!("{request:?}{request:#?}"));
                let answer = self.admin.validate(request).await;
                self.seen.push(format!("{answer:?}"));
            }
            let bad = ValidateRequest {
                client_ip: "nowhere".to_owned(),
                ..ask(&plaintext)
            };
            self.refused("a bad address", self.admin.try_validate(bad).await);
        }
        let good = &self.plaintexts[0];
        assert_eq!(self.admin.reason(good).await, Reason::Allowed);
        let basic = BASE64_STANDARD.encode(format!("api:{}", self.plaintexts[1]));
        let answer = self
            .admin
            .validate(ask_header(&format!("Basic {basic}")))
            .await;
        assert_eq!(answer.reason(), Reason::Allowed);
    }

    /// Calls with credentials that are wrong, or good for something else.
    pub async fn call_as_a_stranger(&mut self, server: &Gatekey) {
        let token = server.admin_token();
        let mut credentials = self.plaintexts.clone();
        credentials.extend([format!("{token}x"), token[1..].to_owned(), String::new()]);
        for credential in credentials {
            let stranger = self.admin.with(&credential);
            let answer = stranger.try_create(new_key("default", &["*"])).await;
            self.refused("a stranger's CreateKey", answer);
            let watch = stranger
                .tenants
                .clone()
                .list_tenants(ListTenantsRequest::default())
                .await;
            match watch {
                Ok(answer) => self.seen.push(format!("{:?}", answer.into_inner())),
                Err(status) => self.refused("a stranger's ListTenants", Err::<(), _>(status)),
            }
            for header in [
                credential.clone(),
                format!(
                    "Basic {}",
                    BASE64_STANDARD.encode(format!("api:{credential}"))
                ),
                format!("Bearer {credential} {credential}"),
            ] {
                let mut request = Request::new(GetKeyRequest::default());
                let value = header.parse().expect("a credential is ASCII");
                request.metadata_mut().insert("authorization", value);
                let bare = KeyServiceClient::new(self.admin.channel.clone());
                self.refused("a stranger's GetKey", bare.clone().get_key(request).await);
            }
        }
    }

    /// A plaintext in a field that is not kept: the error must not repeat it.
    pub async fn paste_in_the_wrong_place(&mut self) {
        let text = self.plaintexts[0].clone();
        let Client {
            keys,
            owners,
            events,
            ..
        } = self.admin.clone();
        let (mut keys, mut owners, mut events) = (keys, owners, events);

        let request = GetKeyRequest {
            key_id: text.clone(),
            tenant_id: String::new(),
        };
        self.refused("key_id", keys.get_key(request).await);
        let request = GetKeyRequest {
            key_id: format!("key_{text}"),
            tenant_id: text.clone(),
        };
        self.refused("tenant_id", keys.get_key(request).await);
        let request = RevokeKeyRequest {
            tenant_id: "default".to_owned(),
            target: key_target(text.clone()),
            reason: String::new(),
        };
        self.refused("RevokeKey", keys.revoke_key(request).await);
        let request = RotateKeyRequest {
            key_id: text.clone(),
            ..RotateKeyRequest::default()
        };
        self.refused("RotateKey", keys.rotate_key(request).await);
        let request = ListKeysRequest {
            tenant_id: "default".to_owned(),
            page_token: text.clone(),
            ..ListKeysRequest::default()
        };
        self.refused("page_token", keys.list_keys(request).await);
        let request = UpdateKeyRequest {
            key: Some(Key {
                key_id: text.clone(),
                ..Key::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec![text.clone()],
            }),
        };
        self.refused("update_mask", keys.update_key(request).await);
        let request = CreateKeyRequest {
            scopes: texts(&[&format!("{text}{text}")]),
            allowed_cidrs: texts(&[&text]),
            audiences: texts(&[&format!("{text}\n")]),
            label: format!("{text}\n"),
            metadata: [(text.repeat(60), String::new())].into(),
            request_id: text.repeat(2),
            ..new_key(&text, &[])
        };
        self.refused("CreateKey", self.admin.try_create(request).await);
        let mut request = ask("");
        request.tenant_id.clone_from(&text);
        request.required_scopes = texts(&[&format!("{text}{text}:*")]);
        request.client_ip.clone_from(&text);
        request.audience = format!("{text}\n");
        self.refused("Validate", self.admin.try_validate(request).await);
        let request = ListEventsRequest {
            key_id: text.clone(),
            tenant_id: text.clone(),
            page_token: text.clone(),
            ..ListEventsRequest::default()
        };
        self.refused("ListEvents", events.list_events(request).await);
        let request = WatchEventsRequest {
            tenant_id: text.clone(),
            store_id: text.clone(),
            ..WatchEventsRequest::default()
        };
        self.refused("WatchEvents", events.watch_events(request).await);
        let owner = Owner {
            tenant_id: text.clone(),
            owner_id: format!("{text}\n"),
            ..Owner::default()
        };
        let mut request = whole_owner(owner.clone());
        request.update_mask = Some(mask(&[&text, &format!("{text}.x")]));
        self.refused("UpdateOwner", owners.update_owner(request).await);
        let request = CreateOwnerRequest { owner: Some(owner) };
        self.refused("CreateOwner", owners.create_owner(request).await);
        let mut request = whole_tenant(Tenant {
            tenant_id: text.clone(),
            key_prefix: text.clone(),
            ..Tenant::default()
        });
        request.update_mask = Some(mask(&[&text]));
        let mut tenants = self.admin.tenants.clone();
        self.refused("UpdateTenant", tenants.update_tenant(request).await);
        let request = DeleteTenantRequest {
            tenant_id: text.clone(),
        };
        self.refused("DeleteTenant", tenants.delete_tenant(request).await);
    }

    /// Messages of other types, methods that are not there, headers full of secrets.
    pub async fn send_garbage(&mut self) {
        let text = self.plaintexts[0].clone();
        let secret = LookupKeyRequest {
            plaintext_key: text.clone(),
            tenant_id: text.clone(),
        };
        let large = ask(&text.repeat(2000));
        for path in ["CreateKey", "UpdateKey", "ListKeys", "RotateKey"] {
            let path = format!("/gatekey.v1.KeyService/{path}");
            self.refused(
                "another type",
                self.send::<_, LookupKeyResponse>(&path, secret.clone())
                    .await,
            );
        }
        let path = "/gatekey.v1.KeyService/Validate";
        self.refused(
            "too large",
            self.send::<_, ValidateResponse>(path, large).await,
        );
        let path = format!("/gatekey.v1.KeyService/{text}");
        self.refused(
            "no such method",
            self.send::<_, LookupKeyResponse>(&path, secret.clone())
                .await,
        );
        let path = format!("/{text}/Validate");
        self.refused(
            "no such service",
            self.send::<_, LookupKeyResponse>(&path, secret).await,
        );

        for header in [
            "traceparent",
            "tracestate",
            "grpc-timeout",
            "user-agent",
            "x-api-key",
        ] {
            let mut request = Request::new(GetKeyRequest::default());
            let value = text.parse().expect("a key is ASCII");
            request.metadata_mut().insert(header, value);
            self.refused(header, self.admin.keys.clone().get_key(request).await);
        }
    }

    async fn send<T, U>(&self, path: &str, message: T) -> Result<U, Status>
    where
        T: Message + 'static,
        U: Message + Default + 'static,
    {
        let mut client = tonic::client::Grpc::new(self.admin.channel.clone());
        client.ready().await.expect("the connection is up");
        let path: PathAndQuery = path.parse().expect("a path");
        let answer = client
            .unary(Request::new(message), path, ProstCodec::<T, U>::default())
            .await?;
        Ok(answer.into_inner())
    }

    /// All that administrators can read.
    pub async fn read_back(&mut self) {
        for tenant in ["default", "acme", "system"] {
            let request = ListKeysRequest {
                tenant_id: tenant.to_owned(),
                ..ListKeysRequest::default()
            };
            let keys = self
                .admin
                .keys
                .clone()
                .list_keys(request)
                .await
                .expect("a page")
                .into_inner();
            assert!(!keys.keys.is_empty());
            self.seen.push(format!("{keys:?}"));
        }
        let request = ListEventsRequest {
            page_size: 1000,
            ..ListEventsRequest::default()
        };
        let events = self
            .admin
            .events
            .clone()
            .list_events(request)
            .await
            .expect("a page")
            .into_inner();
        assert!(events.events.len() > self.plaintexts.len());
        self.seen.push(format!("{events:?}"));
    }
}

/// The same with one character changed, so that the checksum is wrong.
fn typo(plaintext: &str) -> String {
    let last = if plaintext.ends_with('0') { "1" } else { "0" };
    format!("{}{last}", &plaintext[..plaintext.len() - 1])
}
