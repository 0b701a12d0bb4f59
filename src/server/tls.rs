//! TLS: certificate, key and client CAs, reloaded when their files change.
//!
//! New connections use the current content of the files; invalid files leave the previous
//! configuration in place. No text of a key leaves this file, not even in an error. No session is
//! resumed, so that a client's certificate is checked for each connection.

use std::{
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio::{
    net::TcpStream,
    sync::watch,
    task,
    time::{self, Instant},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::{StartError, config::Config, preface, reload, secret_files};
use crate::metrics::{Collect, Encoder, LogLimit};

const CERT: &str = "GATEKEY_TLS_CERT_FILE";
const KEY: &str = "GATEKEY_TLS_KEY_FILE";
const CLIENT_CA: &str = "GATEKEY_TLS_CLIENT_CA_FILE";

/// HTTP/2, the only protocol that is served.
const PROTOCOL: &[u8] = b"h2";
/// HTTP/1.1, whose clients receive one line that names the protocol of this port.
const PROTOCOL_REFUSED: &[u8] = b"http/1.1";

/// The TLS configuration of new connections.
#[derive(Clone)]
pub struct Tls {
    current: watch::Receiver<Arc<ServerConfig>>,
    handshakes: Arc<Handshakes>,
    /// Stops the file watch when the last clone is dropped.
    _watching: Arc<AbortOnDropHandle<()>>,
}

impl Tls {
    /// Reads the files that these settings name, and watches them. Returns `None` if they name
    /// none.
    ///
    /// # Errors
    /// An error that names the variable, the file and how to correct it.
    ///
    /// # Panics
    /// Panics outside a runtime.
    pub fn start(config: &Config) -> Result<Option<Self>, StartError> {
        let Some(files) = Files::of(config)? else {
            return Ok(None);
        };
        let content = files.read()?;
        let (sender, current) = watch::channel(Arc::new(files.server(&content)?));
        let watching = task::spawn(follow(files, content.digest(), sender));
        Ok(Some(Self {
            current,
            handshakes: Arc::default(),
            _watching: Arc::new(AbortOnDropHandle::new(watching)),
        }))
    }

    /// Performs the TLS handshake with a client.
    ///
    /// # Errors
    /// Fails if the client's certificate is expired or its CA is unknown, if the handshake fails
    /// for another reason, or if it does not end before `until`.
    pub async fn accept(
        &self,
        mut stream: TcpStream,
        until: Instant,
    ) -> io::Result<server::TlsStream<TcpStream>> {
        let config = Arc::clone(&self.current.borrow());
        let peer = stream.peer_addr();
        let handshake = async {
            preface::expect_tls(&mut stream).await?;
            TlsAcceptor::from(config).accept(stream).await
        };
        let greeted = time::timeout_at(until, handshake).await;
        let (count, greeted) = match greeted {
            Ok(Ok(stream)) => (&self.handshakes.ok, Ok(stream)),
            Ok(Err(error)) => (&self.handshakes.failed, Err(error)),
            Err(_) => (
                &self.handshakes.timeout,
                Err(io::ErrorKind::TimedOut.into()),
            ),
        };
        // A client that disconnects is not logged because load balancer probes do so all the time.
        if let Err(error) = &greeted
            && error.kind() != io::ErrorKind::UnexpectedEof
            && self.handshakes.log.admit()
        {
            let peer = peer.ok().map(tracing::field::display);
            info!(peer, %error, "TLS handshake failed");
        }
        count.fetch_add(1, Ordering::Relaxed);
        greeted
    }

    /// Returns the counts of handshakes.
    pub fn handshakes(&self) -> Arc<Handshakes> {
        Arc::clone(&self.handshakes)
    }
}

/// Counts the handshakes that have ended, and logs failed ones.
pub struct Handshakes {
    ok: AtomicU64,
    failed: AtomicU64,
    timeout: AtomicU64,
    log: Arc<LogLimit>,
}

impl Default for Handshakes {
    fn default() -> Self {
        Self {
            ok: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            timeout: AtomicU64::new(0),
            log: LogLimit::new(|suppressed| {
                info!(suppressed, "more TLS handshakes failed within 10 s");
            }),
        }
    }
}

impl Collect for Handshakes {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
        let counts = [
            ("ok", &self.ok),
            ("failed", &self.failed),
            ("timeout", &self.timeout),
        ];
        let count = |(result, count): (_, &AtomicU64)| {
            ([("result", result)], count.load(Ordering::Relaxed))
        };
        page.counters(
            "gatekey_tls_handshakes_total",
            "TLS handshakes that have ended, by how",
            counts.map(count),
        )
    }
}

/// Returns the name in a client's certificate: the first URI among its subject alternative names,
/// or else the first DNS name.
pub fn name(stream: &server::TlsStream<TcpStream>) -> Option<String> {
    let (_, connection) = stream.get_ref();
    let certificate = connection.peer_certificates()?.first()?;
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut uris = certificate.valid_uri_names();
    let mut names = certificate.valid_dns_names();
    uris.next().or_else(|| names.next()).map(str::to_owned)
}

/// Returns the name that a client must use for the server with this certificate at this address.
/// Returns `None` if the client can use the address, or the certificate has no name.
pub fn name_for(certificate: &Path, address: IpAddr) -> Option<String> {
    let pem = fs::read(certificate).ok()?;
    let certificate = CertificateDer::from_pem_slice(&pem).ok()?;
    let certificate = webpki::EndEntityCert::try_from(&certificate).ok()?;
    let address = ServerName::IpAddress(address.into());
    if certificate
        .verify_is_valid_for_subject_name(&address)
        .is_ok()
    {
        return None;
    }
    let mut names = certificate.valid_dns_names();
    // A client may use any name that matches a wildcard.
    names.next().map(|name| name.replace('*', "gatekey"))
}

/// Connects to a server that must present exactly the certificate in this file.
///
/// # Errors
/// Fails if the server presents another certificate, or the file cannot be read.
pub async fn connect(
    certificate: &Path,
    stream: TcpStream,
) -> io::Result<client::TlsStream<TcpStream>> {
    let own = fs::read(certificate)?;
    let own = CertificateDer::from_pem_slice(&own).map_err(io::Error::other)?;
    let provider = Arc::new(ring::default_provider());
    let pinned = Pinned {
        own,
        provider: Arc::clone(&provider),
    };
    let address = stream.peer_addr()?.ip();
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned));
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.to_owned()];
    let name = ServerName::IpAddress(address.into());
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

/// Applies the content of the files whenever it has changed.
async fn follow(files: Files, loaded: blake3::Hash, current: watch::Sender<Arc<ServerConfig>>) {
    let files = Arc::new(files);
    let mut changes = reload::Changes::since(loaded);
    loop {
        let read = {
            let files = Arc::clone(&files);
            move || files.read()
        };
        let digest = |read: &Result<Content, StartError>| match read {
            Ok(content) => content.digest(),
            Err(error) => blake3::hash(error.to_string().as_bytes()),
        };
        // Ends only during shutdown.
        let Some(read) = changes.next(read, digest).await else {
            return;
        };
        match read.and_then(|content| files.server(&content)) {
            Ok(config) => {
                current.send_replace(Arc::new(config));
                info!("TLS files reloaded; new connections use the new certificate");
            }
            Err(error) => {
                warn!(%error, "TLS reload failed; keeping the current certificate");
            }
        }
    }
}

/// The paths of the files.
struct Files {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    /// True if group and others may have access to the key.
    allow_readable: bool,
}

/// The content of the files.
struct Content {
    cert: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
}

impl Content {
    /// Returns a digest to compare contents without keeping a key.
    fn digest(&self) -> blake3::Hash {
        let mut digest = blake3::Hasher::new();
        for part in [
            &self.cert,
            &*self.key,
            self.client_ca.as_ref().unwrap_or(&Vec::new()),
        ] {
            digest.update(blake3::hash(part).as_bytes());
        }
        digest.finalize()
    }
}

impl Files {
    /// Returns the files that the settings name.
    fn of(config: &Config) -> Result<Option<Self>, StartError> {
        let alone = |variable, path: &Path, missing: &str| {
            Err(StartError::file(
                variable,
                path,
                format!("set {missing}, too"),
            ))
        };
        let ca = &config.tls_client_ca_file;
        match (&config.tls_cert_file, &config.tls_key_file, ca) {
            (Some(cert), Some(key), _) => Ok(Some(Self {
                cert: cert.clone(),
                key: key.clone(),
                client_ca: ca.clone(),
                allow_readable: config.allow_readable_secrets,
            })),
            (Some(cert), None, _) => alone(CERT, cert, KEY),
            (None, Some(key), _) => alone(KEY, key, CERT),
            (None, None, Some(ca)) => alone(
                CLIENT_CA,
                ca,
                "GATEKEY_TLS_CERT_FILE and GATEKEY_TLS_KEY_FILE",
            ),
            (None, None, None) => Ok(None),
        }
    }

    fn read(&self) -> Result<Content, StartError> {
        let read = |variable, path: &Path| {
            let read = fs::read(path);
            read.map_err(|error| StartError::file(variable, path, error.to_string()))
        };
        let client_ca = self.client_ca.as_ref();
        Ok(Content {
            cert: read(CERT, &self.cert)?,
            key: secret_files::read_secret(&self.key, self.allow_readable)
                .map_err(|error| StartError::file(KEY, &self.key, error.to_string()))?,
            client_ca: client_ca.map(|path| read(CLIENT_CA, path)).transpose()?,
        })
    }

    /// Returns the TLS configuration for this content.
    fn server(&self, content: &Content) -> Result<ServerConfig, StartError> {
        let cert = |why: String| StartError::file(CERT, &self.cert, why);
        let key = |why: &str| StartError::file(KEY, &self.key, why.to_owned());
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| cert(error.to_string()))?;
        let config = match (&self.client_ca, &content.client_ca) {
            (Some(path), Some(pem)) => {
                let wrong = |why: String| StartError::file(CLIENT_CA, path, why);
                let mut roots = RootCertStore::empty();
                for ca in certificates(pem).map_err(|why| wrong(why.to_owned()))? {
                    let added = roots.add(ca);
                    added.map_err(|error| wrong(error.to_string()))?;
                }
                // A client may present a bearer credential instead.
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| wrong(error.to_string()))?;
                config.with_client_cert_verifier(verifier)
            }
            _ => config.with_no_client_auth(),
        };
        let chain = certificates(&content.cert).map_err(|why| cert(why.to_owned()))?;
        let secret = PrivateKeyDer::from_pem_slice(&content.key)
            .map_err(|_| key("there is no private key in it that can be read (PEM)"))?;
        let mut config = config
            .with_single_cert(chain, secret)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    key("it is not the key of the certificate in GATEKEY_TLS_CERT_FILE")
                }
                rustls::Error::InvalidCertificate(error) => {
                    cert(format!("its first certificate cannot be used: {error:?}"))
                }
                _ => key("it is not a key that TLS can be spoken with (RSA, ECDSA or Ed25519)"),
            })?;
        config.alpn_protocols = vec![PROTOCOL.to_owned(), PROTOCOL_REFUSED.to_owned()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// Parses all certificates, at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = read.map_err(|_| "it is not PEM")?;
    if found.is_empty() {
        return Err("there is no certificate in it (PEM)");
    }
    Ok(found)
}

/// Accepts exactly one certificate, regardless of the server name.
#[derive(Debug)]
struct Pinned {
    own: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.own {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
