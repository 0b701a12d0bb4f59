//! What gatekey is compared with: servers of our own proto that do less, or do it as one would at first. Each is this
//! same program, started again with a hidden word, so that both sides have the same compiler, allocator and libraries.
//!
//! All answer exactly what gatekey answered when it was asked about the key.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    thread,
};

use argon2::Argon2;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use gatekey::{
    api::proto::{
        self, ValidateRequest, ValidateResponse,
        key_service_server::{KeyService, KeyServiceServer},
        validate_request::Credential,
    },
    domain::token::Presented,
};
use prost::Message as _;
use tokio::{runtime, sync::Semaphore, task::spawn_blocking};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use crate::{dealt, select::Select};

/// The first argument that makes this program a baseline.
pub const WORD: &str = "baseline";

/// A server to compare with.
#[derive(Clone, Copy)]
pub enum Kind<'a> {
    /// A constant answer, on the runtime that tonic's examples use.
    Stock,
    /// A constant answer, on one single-threaded runtime a core.
    SingleThreaded,
    /// Argon2id of what was asked, in every call.
    Argon2,
    /// The key's row read from this database in every call.
    Select { url: &'a str },
}

/// A running one; killed on drop, and gone when this process is.
pub struct Baseline {
    child: Child,
    pub addr: SocketAddr,
}

impl Baseline {
    pub fn start(kind: Kind<'_>, answer: &ValidateResponse) -> Self {
        let words = match kind {
            Kind::Stock => ["stock", ""],
            Kind::SingleThreaded => ["single-threaded", ""],
            Kind::Argon2 => ["argon2", ""],
            Kind::Select { url } => ["select", url],
        };
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"))
            .arg(WORD)
            .args(words)
            .arg(BASE64_STANDARD.encode(answer.encode_to_vec()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts again");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let read = BufReader::new(stdout).read_line(&mut line);
        read.expect("a baseline tells its address");
        Self {
            addr: line.trim().parse().expect("a baseline tells its address"),
            child,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Serves as the words say, until stdin closes.
pub fn serve(words: &[String]) {
    let [kind, url, answer] = words else {
        panic!("a baseline is told its kind, a database and an answer")
    };
    let answer = BASE64_STANDARD.decode(answer).expect("base64");
    let answer = ValidateResponse::decode(&*answer).expect("an answer of gatekey");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    println!("{}", listener.local_addr().expect("it is bound"));
    thread::spawn(|| {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        std::process::exit(0);
    });

    let runtime = runtime::Runtime::new().expect("a runtime");
    let work = match &**kind {
        "argon2" => Work::Argon2(Semaphore::new(cores())),
        "select" => Work::Select(runtime.block_on(Select::open(url, SELECT_CONNECTIONS))),
        _ => Work::None,
    };
    let service = KeyServiceServer::new(Handler { answer, work });
    if kind == "single-threaded" {
        dealt::serve(&listener, &service);
    }
    let served = runtime.block_on(async {
        listener.set_nonblocking(true).expect("a TCP listener");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a TCP listener");
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming)
            .await
    });
    served.expect("a server goes on until its process ends");
}

/// As many as gatekey reads SQLite with.
const SELECT_CONNECTIONS: u32 = 4;

/// How many threads run at once.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Answers every Validate alike.
pub struct Handler {
    answer: ValidateResponse,
    work: Work,
}

/// What is done before each answer.
enum Work {
    None,
    Argon2(Semaphore),
    Select(Select),
}

impl Handler {
    async fn work(&self, request: ValidateRequest) {
        let key = match request.credential {
            Some(Credential::Key(key)) => key,
            _ => String::new(),
        };
        match &self.work {
            Work::None => {}
            Work::Argon2(running) => {
                let _running = running.acquire().await.expect("it is never closed");
                // OWASP's first choice, which is the crate's default too: 19 MiB, two passes, one lane.
                let hash = move || {
                    Argon2::default().hash_password_into(key.as_bytes(), &[7; 16], &mut [0; 32])
                };
                let hashed = spawn_blocking(hash).await.expect("hashing does not panic");
                hashed.expect("the default parameters are valid");
            }
            Work::Select(select) => {
                let presented = Presented::parse(&key).expect("a key is asked");
                select.row(presented.id().as_bare()).await;
            }
        }
    }
}

/// A service that can do nothing but Validate.
macro_rules! validate_alone {
    ($($name:ident($request:ident) -> $response:ident;)+) => {
        #[tonic::async_trait]
        impl KeyService for Handler {
            async fn validate(
                &self,
                request: Request<ValidateRequest>,
            ) -> Result<Response<ValidateResponse>, Status> {
                self.work(request.into_inner()).await;
                Ok(Response::new(self.answer.clone()))
            }

            $(async fn $name(
                &self,
                _: Request<proto::$request>,
            ) -> Result<Response<proto::$response>, Status> {
                Err(Status::unimplemented("a baseline can only Validate"))
            })+
        }
    };
}

validate_alone! {
    batch_validate(BatchValidateRequest) -> BatchValidateResponse;
    create_key(CreateKeyRequest) -> CreateKeyResponse;
    list_keys(ListKeysRequest) -> ListKeysResponse;
    revoke_key(RevokeKeyRequest) -> RevokeKeyResponse;
    revoke_keys(RevokeKeysRequest) -> RevokeKeysResponse;
    rotate_key(RotateKeyRequest) -> RotateKeyResponse;
    get_key(GetKeyRequest) -> GetKeyResponse;
    lookup_key(LookupKeyRequest) -> LookupKeyResponse;
    update_key(UpdateKeyRequest) -> UpdateKeyResponse;
}
