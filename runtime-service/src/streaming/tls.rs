//! TLS of the streaming server, from PEM files.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::{Config, Error};

/// `None` when no certificate is configured.
///
/// # Errors
/// A file that cannot be read or used, or one without the other.
pub(super) fn acceptor(config: &Config) -> Result<Option<TlsAcceptor>, Error> {
    let empty = |path: &Path| path.as_os_str().is_empty();
    match (empty(&config.tls_cert), empty(&config.tls_key), empty(&config.client_ca)) {
        (true, true, true) => return Ok(None),
        (false, false, _) => {}
        _ => return Err(Error::TlsHalf),
    }
    let tls = |error: &dyn std::fmt::Display| Error::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| tls(&e))?;
    let builder = match empty(&config.client_ca) {
        true => builder.with_no_client_auth(),
        false => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(&config.client_ca)? {
                roots.add(certificate).map_err(|e| tls(&e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|e| tls(&e))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&config.tls_key).map_err(|e| pem(&config.tls_key, &e))?;
    let server = builder.with_single_cert(certificates(&config.tls_cert)?, key).map_err(|e| tls(&e))?;
    Ok(Some(TlsAcceptor::from(Arc::new(server))))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match all {
        Ok(all) if all.is_empty() => Err(Error::Pem { path: path.to_owned(), why: "it has no certificate".into() }),
        Ok(all) => Ok(all),
        Err(error) => Err(pem(path, &error)),
    }
}

fn pem(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Pem { path: path.to_owned(), why: error.to_string() }
}
