//! The files that the settings name, read and looked at: `--check`, and the warnings of the start.

use std::path::Path;
use std::time::Duration;

use rustls::pki_types::UnixTime;

use super::dates::{CertificateState, Validity};
use super::{TlsBlame, acceptor, connector};
use crate::config::{AuthClients, Config, ConfigError, ListenTls};

/// A certificate that ends sooner is worth a warning.
const SOON: Duration = Duration::from_secs(14 * DAY);
const DAY: u64 = 24 * 3600;

/// A certificate that is of no use now, or not for long.
#[derive(Debug)]
pub struct Finding {
    /// Nothing works by it: handshakes will fail.
    pub fatal: bool,
    /// Its setting, its file, and what is wrong.
    pub problem: ConfigError,
}

/// Reads and checks all that `config` names, as the start would. What is wrong only with the dates is left to the caller: the
/// start goes on, for clients that do not look at them.
pub fn check(config: &Config) -> Result<Vec<Finding>, ConfigError> {
    let mut found = Vec::new();
    for listen in &config.listen {
        acceptor(listen)?;
        let Some(ListenTls { cert, ca, auth_clients, .. }) = &listen.tls else { continue };
        let origin = format!("listen {}", listen.address);
        let blame = TlsBlame { origin: &origin, prefix: "tls_" };
        chain(&blame, cert, &mut found)?;
        if let Some(ca) = ca.as_ref().filter(|_| *auth_clients != AuthClients::No) {
            cas(&blame, ca, &mut found)?;
        }
    }
    let Some(upstream) = &config.upstream else { return Ok(found) };
    connector(upstream)?;
    let blame = TlsBlame { origin: "settings", prefix: "upstream_tls_" };
    if let Some((cert, _)) = upstream.tls.as_ref().and_then(|tls| tls.cert_and_key.as_ref()) {
        chain(&blame, cert, &mut found)?;
    }
    if let Some(ca) = upstream.tls.as_ref().filter(|tls| !tls.insecure).and_then(|tls| tls.ca.as_ref()) {
        cas(&blame, ca, &mut found)?;
    }
    Ok(found)
}

/// Our own certificate and those between it and the CA: all of them must be good.
fn chain(blame: &TlsBlame<'_>, file: &Path, found: &mut Vec<Finding>) -> Result<(), ConfigError> {
    for state in states(blame, "cert", file)? {
        if let Some(problem) = problem(state) {
            let fatal = !matches!(state, CertificateState::Good(_));
            found.push(Finding { fatal, problem: blame.error("cert", format!("{}: {problem}", file.display())) });
        }
    }
    Ok(())
}

/// The authorities believed: one that is good is enough, as when a CA is being replaced.
fn cas(blame: &TlsBlame<'_>, file: &Path, found: &mut Vec<Finding>) -> Result<(), ConfigError> {
    let states = states(blame, "ca", file)?;
    let none = !states.iter().any(|state| matches!(state, CertificateState::Good(_)));
    for state in states {
        if let Some(problem) = problem(state) {
            let text = format!("{}: of a CA in it: {problem}", file.display());
            found.push(Finding { fatal: none, problem: blame.error("ca", text) });
        }
    }
    Ok(())
}

fn states(blame: &TlsBlame<'_>, setting: &str, file: &Path) -> Result<Vec<CertificateState>, ConfigError> {
    let now = UnixTime::now();
    let unreadable = || blame.error(setting, format!("{}: the dates of a certificate cannot be read", file.display()));
    let certificates = blame.certificates(setting, file)?;
    certificates.iter().map(|c| Validity::of(c).map(|validity| validity.at(now)).ok_or_else(unreadable)).collect()
}

fn problem(state: CertificateState) -> Option<String> {
    match state {
        CertificateState::NotYet => Some("the certificate is not valid yet".into()),
        CertificateState::Expired => Some("the certificate has expired".into()),
        CertificateState::Good(left) if left < SOON => {
            let (days, hours) = (left.as_secs() / DAY, left.as_secs() % DAY / 3600);
            Some(format!("the certificate expires in {days} days and {hours} hours"))
        }
        CertificateState::Good(_) => None,
    }
}
