//! Certificates for tests: a CA of their own, and what it signs.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
    string::Ia5String,
};
use tonic::transport::{self, ClientTlsConfig};

use super::{Setup, write_secret};

/// A CA.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, in PEM.
    pub pem: String,
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    pub cert: String,
    pub key: String,
}

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// The certificate of whoever has these alternative names: those with a `:` are URIs.
    pub fn issue(&self, names: &[&str]) -> Identity {
        self.sign(names, CertificateParams::default())
    }

    /// The same, and its time is over.
    pub fn issue_expired(&self, names: &[&str]) -> Identity {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
        self.sign(names, params)
    }

    /// That of a server on this machine.
    pub fn issue_server(&self) -> Identity {
        let mut params = CertificateParams::default();
        let local = SanType::IpAddress([127, 0, 0, 1].into());
        params.subject_alt_names.push(local);
        self.sign(&["localhost"], params)
    }

    fn sign(&self, names: &[&str], mut params: CertificateParams) -> Identity {
        for name in names {
            let text = Ia5String::try_from(*name).expect("a name is ASCII");
            let uri = name.contains(':');
            params.subject_alt_names.push(if uri {
                SanType::URI(text)
            } else {
                SanType::DnsName(text)
            });
        }
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer);
        Identity {
            cert: cert.expect("a certificate").pem(),
            key: key.serialize_pem(),
        }
    }

    /// What a client needs that trusts this CA.
    pub fn trusted(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(transport::Certificate::from_pem(&self.pem))
    }
}

impl Identity {
    /// Puts both files into a folder, whole or not at all, the key first.
    pub fn write(&self, folder: &Path, name: &str) {
        for (ending, content) in [("key", &self.key), ("crt", &self.cert)] {
            let part = folder.join("part");
            write_secret(&part, content);
            fs::rename(part, folder.join(format!("{name}.{ending}"))).expect("it is ours");
        }
    }

    /// What a client needs that shows this certificate.
    pub fn shown(&self, tls: ClientTlsConfig) -> ClientTlsConfig {
        tls.identity(transport::Identity::from_pem(&self.cert, &self.key))
    }
}

impl Setup {
    /// The same with TLS, by a certificate of this CA, which signs those of clients, too. Its files
    /// are `server.crt`, `server.key` and `ca.crt` in the server's folder.
    pub fn encrypted(self, authority: &Authority) -> Setup {
        let folder = self.folder().to_owned();
        authority.issue_server().write(&folder, "server");
        fs::write(folder.join("ca.crt"), &authority.pem).expect("the folder takes files");
        let file = |name| folder.join(name).display().to_string();
        self.env("GATEKEY_TLS_CERT_FILE", file("server.crt"))
            .env("GATEKEY_TLS_KEY_FILE", file("server.key"))
            .env("GATEKEY_TLS_CLIENT_CA_FILE", file("ca.crt"))
    }
}
