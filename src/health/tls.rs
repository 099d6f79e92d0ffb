// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Whose certificates are accepted.

use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use crate::service::Trust;

/// What was read already: many checks have the same.
#[derive(Default)]
pub struct Authorities(Vec<(Trust, Arc<ClientConfig>)>);

impl Authorities {
    /// How to talk to who may be trusted so far.
    pub fn config(&mut self, trust: &Trust) -> Result<Arc<ClientConfig>> {
        if let Some((_, config)) = self.0.iter().find(|(known, _)| known == trust) {
            return Ok(config.clone());
        }
        let provider = Arc::new(ring::default_provider());
        let trusted = match trust {
            Trust::Anyone => None,
            Trust::Host => Some((Vec::new(), verifier(of_host()?, &provider)?)),
            Trust::File(file) => {
                let certificates = in_file(file)?;
                let mut store = RootCertStore::empty();
                for certificate in &certificates {
                    let added = store.add(certificate.clone());
                    added.with_context(|| reading(file))?;
                }
                Some((certificates, verifier(store, &provider)?))
            }
        };
        let verifier = Verifier {
            trusted,
            algorithms: provider.signature_verification_algorithms,
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        // A server's tickets would be memory that it decides on, and its certificate is to be looked
        // at each time.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        self.0.push((trust.clone(), config.clone()));
        Ok(config)
    }
}

fn verifier(
    authorities: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>> {
    WebPkiServerVerifier::builder_with_provider(authorities.into(), provider.clone())
        .build()
        .context("trusting authorities")
}

fn of_host() -> Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(found.certs);
    ensure!(
        !store.is_empty(),
        "the host trusts no authority: install ca-certificates, or name a file with ca"
    );
    Ok(store)
}

fn in_file(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    // The daemon does not wait for who writes into a pipe.
    ensure!(
        !file.metadata().is_ok_and(|metadata| !metadata.is_file()),
        "{}: it is no regular file; name a file of PEM",
        reading(file)
    );
    let read = || CertificateDer::pem_file_iter(file)?.collect::<Result<Vec<_>, _>>();
    let certificates = read()
        .map_err(|error| anyhow!("{error}"))
        .with_context(|| reading(file))?;
    ensure!(
        !certificates.is_empty(),
        "{}: no certificate is in it; name a file of PEM",
        reading(file)
    );
    Ok(certificates)
}

/// A failed handshake, in words that help.
pub fn in_words(error: io::Error) -> io::Error {
    let text = error.to_string();
    // What webpki calls a certificate of an authority that a server shows as its own.
    match text.strip_suffix("Other(OtherError(CaUsedAsEndEntity))") {
        Some(rest) => io::Error::other(format!("{rest}it signs itself, and is not in ca")),
        None => error,
    }
}

fn reading(file: &Path) -> String {
    format!("reading the authorities in {}", file.display())
}

/// Takes what an authority has signed, and the certificates listed here, as one may be
/// that signs itself; or any. Its key must be the one that was used.
#[derive(Debug)]
struct Verifier {
    /// `None`: anyone.
    trusted: Option<(Vec<CertificateDer<'static>>, Arc<WebPkiServerVerifier>)>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trusted {
            Some((listed, _)) if listed.contains(certificate) => {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            Some((_, others)) => others.verify_server_cert(certificate, chain, name, stapled, now),
            None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
