//! CAs, each believed only while its own certificate is good, as OpenSSL, and so Redis, believes them. rustls keeps no dates
//! of CAs: a verifier is made of those that are good, anew when that changes.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::VerifierBuilderError;
use rustls::{CertificateError, Error, RootCertStore};

use super::dates::{CertificateState, Validity};

/// Makes a verifier of some CAs.
type Build<V> = Box<dyn Fn(RootCertStore) -> Result<V, VerifierBuilderError> + Send + Sync>;

/// Authorities, with the verifier of those that are good now.
pub struct Roots<V> {
    cas: Vec<(CertificateDer<'static>, Validity)>,
    /// Where they come from, for the log; `None`: one of them is nobody's concern.
    name: Option<String>,
    build: Build<V>,
    /// Verifier of all of them, good or not.
    all: V,
    /// Which of them were good at the last look, and the verifier of these, if there are any.
    good: Mutex<(Vec<bool>, Option<V>)>,
}

impl<V> fmt::Debug for Roots<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roots").field("cas", &self.cas.len()).field("name", &self.name).finish()
    }
}

impl<V: Clone> Roots<V> {
    /// A certificate that cannot be taken as a CA's is left out; how many can is for the caller to ask.
    pub fn new(
        cas: Vec<CertificateDer<'static>>,
        name: Option<String>,
        build: impl Fn(RootCertStore) -> Result<V, VerifierBuilderError> + Send + Sync + 'static,
    ) -> Result<Roots<V>, VerifierBuilderError> {
        let dated = |ca: CertificateDer<'static>| Validity::of(&ca).map(|validity| (ca, validity));
        let cas: Vec<_> = cas.into_iter().filter_map(dated).collect();
        let all = build(store(cas.iter().map(|(ca, _)| ca)))?;
        let good = Mutex::new((vec![true; cas.len()], Some(all.clone())));
        Ok(Roots { cas, name, build: Box::new(build), all, good })
    }

    /// A verifier for what does not depend on the CAs.
    pub fn any(&self) -> &V {
        &self.all
    }

    /// Has `verify` judge by the CAs that are good at `now`. A certificate that another would have vouched for is refused
    /// with what is wrong with that one.
    pub fn verified<T>(&self, now: UnixTime, verify: impl Fn(&V) -> Result<T, Error>) -> Result<T, Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext, UnknownIssuer};
        let unknown = || Error::InvalidCertificate(UnknownIssuer);
        let refusal = match self.verifier(now)?.map_or_else(|| Err(unknown()), |verifier| verify(&verifier)) {
            Err(refusal) if refusal == unknown() => refusal,
            other => return other,
        };
        match verify(&self.all) {
            // The name is looked at last: the chain is in order but for the CA.
            Ok(_) | Err(Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
                let states = self.cas.iter().map(|(_, validity)| validity.at(now));
                let expired = states.into_iter().any(|state| state == CertificateState::Expired);
                let why = if expired { CertificateError::Expired } else { CertificateError::NotValidYet };
                Err(Error::InvalidCertificate(why))
            }
            Err(_) => Err(refusal),
        }
    }

    /// A verifier of the CAs that are good at `now`, if there are any.
    fn verifier(&self, now: UnixTime) -> Result<Option<V>, Error> {
        let good = self.cas.iter().map(|(_, validity)| matches!(validity.at(now), CertificateState::Good(_)));
        let good: Vec<bool> = good.collect();
        let mut known = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != good {
            let chosen = self.cas.iter().zip(&good).filter(|(_, good)| **good).map(|((ca, _), _)| ca);
            let verifier = if good.contains(&true) {
                Some((self.build)(store(chosen)).map_err(|e| Error::General(e.to_string()))?)
            } else {
                None
            };
            if let Some(name) = &self.name {
                let left = good.iter().filter(|good| **good).count();
                tracing::warn!(
                    "of the {} CAs in {name}, {left} are good now: others have expired or are not valid yet",
                    good.len()
                );
            }
            *known = (good, verifier);
        }
        Ok(known.1.clone())
    }
}

fn store<'a>(cas: impl Iterator<Item = &'a CertificateDer<'static>>) -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(cas.cloned());
    store
}
