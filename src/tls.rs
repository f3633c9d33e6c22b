//! Certificates and keys: what the settings name, read and checked, and who is believed. No sockets.
//!
//! rustls over `ring`: no C++ or cmake to build, and no process-wide default, so each configuration names its provider.

mod check;
mod dates;
mod roots;

pub use check::{Finding, check};

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::config::{Address, AuthClients, ConfigError, Listen, ListenTls, Upstream, UpstreamTls};
use roots::Roots;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Names the setting of a mistake, and its file.
struct TlsBlame<'a> {
    origin: &'a str,
    /// In front of every setting's name.
    prefix: &'a str,
}

impl TlsBlame<'_> {
    fn error(&self, setting: &str, problem: impl Display) -> ConfigError {
        ConfigError { origin: self.origin.into(), line: None, problem: format!("{}{setting}: {problem}", self.prefix) }
    }

    fn certificates(&self, setting: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
        let name = file.display();
        let unreadable = |e| self.error(setting, format!("{name} cannot be read: {}", plain(&e)));
        let found = CertificateDer::pem_file_iter(file).map_err(unreadable)?;
        let found = found.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
        if found.is_empty() {
            return Err(
                self.error(setting, format!("{name} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"))
            );
        }
        Ok(found)
    }

    fn key(&self, setting: &str, file: &Path) -> Result<PrivateKeyDer<'static>, ConfigError> {
        let name = file.display();
        PrivateKeyDer::from_pem_file(file).map_err(|e| match e {
            rustls::pki_types::pem::Error::NoItemsFound => {
                self.error(setting, format!("{name} holds no private key in PEM; one under a passphrase is not taken"))
            }
            e => self.error(setting, format!("{name} cannot be read: {}", plain(&e))),
        })
    }

    /// The CAs in a file, each of which can be taken as one.
    fn cas(&self, setting: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
        let found = self.certificates(setting, file)?;
        for certificate in &found {
            let added = RootCertStore::empty().add(certificate.clone());
            added.map_err(|e| self.error(setting, format!("{}: {e}", file.display())))?;
        }
        Ok(found)
    }

    /// A certificate and a key that are not taken together.
    fn pair(&self, setting: &str, cert: &Path, key: &Path, e: &rustls::Error) -> ConfigError {
        match e {
            rustls::Error::InconsistentKeys(_) => {
                self.error(setting, format!("{} is not the key of {}", key.display(), cert.display()))
            }
            e => self.error(setting, format!("{} with {}: {e}", key.display(), cert.display())),
        }
    }
}

/// The kernel's own words where there are some.
fn plain(e: &rustls::pki_types::pem::Error) -> String {
    match e {
        rustls::pki_types::pem::Error::Io(e) => e.to_string(),
        e => e.to_string(),
    }
}

// --- listeners ---

/// The settings of a listener's handshakes; `None`: it speaks in the clear.
pub fn acceptor(listen: &Listen) -> Result<Option<Arc<ServerConfig>>, ConfigError> {
    let Some(ListenTls { cert, key, ca, auth_clients }) = &listen.tls else { return Ok(None) };
    let origin = format!("listen {}", listen.address);
    let blame = TlsBlame { origin: &origin, prefix: "tls_" };
    let chain = blame.certificates("cert", cert)?;
    let secret = blame.key("key", key)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| blame.error("cert", e))?;
    let builder = match (ca, auth_clients) {
        (None, _) | (_, AuthClients::No) => builder.with_no_client_auth(),
        (Some(ca), auth_clients) => {
            let (pinned, must) = (blame.cas("ca", ca)?, *auth_clients == AuthClients::Yes);
            let build = move |cas: RootCertStore| {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(cas), provider());
                if must { verifier.build() } else { verifier.allow_unauthenticated().build() }
            };
            let strict = Roots::new(pinned.clone(), Some(ca.display().to_string()), build)
                .map_err(|e| blame.error("ca", format!("{}: {e}", ca.display())))?;
            builder.with_client_cert_verifier(Arc::new(ClientVerifier { strict, pinned }))
        }
    };
    let config = builder.with_single_cert(chain, secret).map_err(|e| blame.pair("key", cert, key, &e))?;
    Ok(Some(Arc::new(config)))
}

/// Whether a certificate was refused only because it is marked as a CA's, though the settings name this very one
/// (`openssl req -x509` makes such). Its dates were looked at before: they are in order.
fn is_pinned_ca(e: &rustls::Error, shown: &CertificateDer<'_>, pinned: &[CertificateDer<'static>]) -> bool {
    matches!(e, rustls::Error::InvalidCertificate(CertificateError::Other(e)) if e.0.to_string() == "CaUsedAsEndEntity")
        && pinned.contains(shown)
}

/// Which clients' certificates are good: rustls' own rules, and those that `tls_ca` itself holds.
#[derive(Debug)]
struct ClientVerifier {
    strict: Roots<Arc<dyn ClientCertVerifier>>,
    pinned: Vec<CertificateDer<'static>>,
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.strict.any().offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.strict.any().client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.strict.any().root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match self.strict.verified(now, |strict| strict.verify_client_cert(end_entity, intermediates, now)) {
            Err(e) if is_pinned_ca(&e, end_entity, &self.pinned) => Ok(ClientCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.strict.any().verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.strict.any().verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.strict.any().supported_verify_schemes()
    }
}

// --- the upstream ---

/// The settings of a handshake with the upstream.
#[derive(Debug)]
pub struct Connector {
    /// Certificates and whom to believe.
    pub config: Arc<ClientConfig>,
    /// The name that the upstream must prove.
    pub name: ServerName<'static>,
}

/// How to reach the upstream; `None`: in the clear.
pub fn connector(upstream: &Upstream) -> Result<Option<Connector>, ConfigError> {
    let (Some(tls), Address::Tcp(host, _)) = (&upstream.tls, &upstream.address) else { return Ok(None) };
    let blame = TlsBlame { origin: "settings", prefix: "upstream_tls_" };
    let named = tls.server_name.as_deref().filter(|name| *name != ANY_NAME);
    let name = ServerName::try_from(named.unwrap_or(host).to_owned()).map_err(|_| {
        blame.error("server_name", format!("`{}` is neither a DNS name nor an IP address", named.unwrap_or(host)))
    })?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| blame.error("ca", e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(tls, &blame)?));
    let config = match &tls.cert_and_key {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let (chain, secret) = (blame.certificates("cert", cert)?, blame.key("key", key)?);
            builder.with_client_auth_cert(chain, secret).map_err(|e| blame.pair("key", cert, key, &e))?
        }
    };
    Ok(Some(Connector { config: Arc::new(config), name }))
}

/// `upstream_tls_server_name` for: any certificate of that CA.
const ANY_NAME: &str = "*";

/// Which upstream to believe: by rustls' own rules, those that `upstream_tls_ca` itself holds, and, if the name is not
/// to be looked at, as redis-cli does, any of that CA.
#[derive(Debug)]
struct Verifier {
    /// `None`: everybody.
    strict: Option<Roots<Arc<WebPkiServerVerifier>>>,
    pinned: Vec<CertificateDer<'static>>,
    any_name: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(tls: &UpstreamTls, blame: &TlsBlame<'_>) -> Result<Verifier, ConfigError> {
        let provider = provider();
        let any_name = tls.server_name.as_deref() == Some(ANY_NAME);
        if tls.insecure {
            return Ok(Verifier { strict: None, pinned: Vec::new(), any_name, provider });
        }
        // Some of the system's hundred may always have expired: only those of a file of one's own are worth a word.
        let (cas, pinned, name) = match &tls.ca {
            Some(file) => (blame.cas("ca", file)?, blame.cas("ca", file)?, Some(file.display().to_string())),
            None => (system_cas(blame)?, Vec::new(), None),
        };
        let source = name.clone().unwrap_or_else(|| "the system's certificates".into());
        let verifiers = provider.clone();
        let build = move |cas: RootCertStore| {
            WebPkiServerVerifier::builder_with_provider(Arc::new(cas), verifiers.clone()).build()
        };
        let strict = Roots::new(cas, name, build).map_err(|e| blame.error("ca", format!("{source}: {e}")))?;
        Ok(Verifier { strict: Some(strict), pinned, any_name, provider })
    }
}

fn system_cas(blame: &TlsBlame<'_>) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let found = rustls_native_certs::load_native_certs();
    // One bad certificate among the system's hundred is no reason to refuse the rest.
    let (taken, _) = RootCertStore::empty().add_parsable_certificates(found.certs.iter().cloned());
    if taken == 0 {
        let why = found.errors.first().map(|e| format!(" ({e})")).unwrap_or_default();
        let problem = format!(
            "the system has no CA certificates{why}: install them (apt-get install ca-certificates), or name a file"
        );
        return Err(blame.error("ca", problem));
    }
    Ok(found.certs)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        let Some(strict) = &self.strict else { return Ok(ServerCertVerified::assertion()) };
        match strict.verified(now, |strict| {
            strict.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        }) {
            // The name is looked at last: everything else is in order.
            Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }))
                if self.any_name =>
            {
                Ok(ServerCertVerified::assertion())
            }
            Err(e) if is_pinned_ca(&e, end_entity, &self.pinned) => {
                if !self.any_name {
                    rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
