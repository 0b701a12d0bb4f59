//! An HTTP service that lets gatekey decide about each request.
//!
//! Environment: GATEKEY_CREDENTIAL, a key of tenant `system` with scope `*:keys:validate`; GATEKEY_TARGET, the URLs of
//! gatekey's replicas, separated by commas; GATEKEY_CA_FILE, for TLS; PORT.

use std::{env, error::Error, fs, net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::{ConnectInfo, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tonic::{
    Code, Request, Status,
    metadata::AsciiMetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use validating::{
    ValidateRequest, ValidateResponse, key_service_client::KeyServiceClient,
    validate_request::Credential,
};

/// The time limit of a check, retries included.
const DEADLINE: Duration = Duration::from_secs(1);
const MAX_ATTEMPTS: u32 = 3;
const INITIAL_BACKOFF: Duration = Duration::from_millis(50);

#[derive(Clone)]
struct Gatekey {
    client: KeyServiceClient<Channel>,
    bearer: AsciiMetadataValue,
}

impl Gatekey {
    /// Prepares a connection to each replica; they are opened by the first calls.
    fn from_env() -> Result<Gatekey, Box<dyn Error>> {
        let target = env::var("GATEKEY_TARGET").unwrap_or("http://127.0.0.1:50051".to_owned());
        let mut endpoints = Vec::new();
        for url in target.split(',') {
            let mut endpoint = Endpoint::from_shared(url.to_owned())?;
            if let Ok(file) = env::var("GATEKEY_CA_FILE") {
                let ca = Certificate::from_pem(fs::read(file)?);
                endpoint = endpoint.tls_config(ClientTlsConfig::new().ca_certificate(ca))?;
            }
            endpoints.push(endpoint);
        }
        let bearer = format!("Bearer {}", env::var("GATEKEY_CREDENTIAL")?);
        Ok(Gatekey {
            client: KeyServiceClient::new(Channel::balance_list(endpoints.into_iter())),
            bearer: bearer.parse()?,
        })
    }

    /// Returns gatekey's decision; an error means that there is none.
    async fn check(&self, validate: ValidateRequest) -> Result<ValidateResponse, Status> {
        timeout(DEADLINE, self.check_with_retries(validate))
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer from gatekey")))
    }

    /// tonic knows no service config, so this is its retry policy.
    async fn check_with_retries(
        &self,
        validate: ValidateRequest,
    ) -> Result<ValidateResponse, Status> {
        let mut backoff = INITIAL_BACKOFF;
        for _ in 1..MAX_ATTEMPTS {
            match self.check_once(validate.clone()).await {
                Err(status) if status.code() == Code::Unavailable => sleep(backoff).await,
                decided => return decided,
            }
            backoff *= 2;
        }
        self.check_once(validate).await
    }

    async fn check_once(&self, validate: ValidateRequest) -> Result<ValidateResponse, Status> {
        let mut request = Request::new(validate);
        request.set_timeout(DEADLINE);
        request
            .metadata_mut()
            .insert("authorization", self.bearer.clone());
        let response = self.client.clone().validate(request).await?;
        Ok(response.into_inner())
    }
}

async fn reports(
    State(gatekey): State<Gatekey>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Response {
    let authorization = headers.get(header::AUTHORIZATION);
    let authorization = authorization.and_then(|value| value.to_str().ok());
    let decision = gatekey.check(ValidateRequest {
        credential: Some(Credential::Authorization(
            authorization.unwrap_or_default().to_owned(),
        )),
        required_scopes: vec!["reports:read".to_owned()],
        // The address of the peer. Behind a proxy: the one address that your proxy saw.
        client_ip: peer.ip().to_string(),
        ..ValidateRequest::default()
    });
    match decision.await {
        Err(status) => {
            eprintln!("gatekey: {:?}: {}", status.code(), status.message());
            let body = json!({"error": "UNAVAILABLE"});
            answer(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
        Ok(decision) if decision.allowed => {
            answer(StatusCode::OK, &json!({"owner": decision.owner_id}))
        }
        Ok(decision) => {
            let reason = decision.reason().as_str_name();
            let status = u16::try_from(decision.http_status).ok();
            let status = status.and_then(|code| StatusCode::from_u16(code).ok());
            let body = json!({"error": reason, "message": decision.message});
            answer(status.unwrap_or(StatusCode::FORBIDDEN), &body)
        }
    }
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    let mut response = (status, json, body.to_string()).into_response();
    if status == StatusCode::UNAUTHORIZED {
        let challenge = header::HeaderValue::from_static("Bearer");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let port = env::var("PORT").unwrap_or("8080".to_owned());
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("http://{}", listener.local_addr()?);
    let router = Router::new()
        .route("/", get(reports))
        .with_state(Gatekey::from_env()?);
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await?;
    Ok(())
}
