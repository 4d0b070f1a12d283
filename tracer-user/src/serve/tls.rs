//! Certificates: who we are, and by which authority we know who asks. TLS 1.3 alone.
//!
//! Files are read again when they are older than a minute: certificates of a cluster live for days, the sidecar for months. It must not
//! know tokens or requests.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::{VerifierBuilderError, WebPkiClientVerifier},
        version::TLS13,
    },
};

use super::access::{AccessError, AccessFiles};

/// How long what was read is believed.
const FRESH: Duration = Duration::from_secs(60);
/// No file of certificates is longer.
const MOST_BYTES: u64 = 1 << 20;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in it.
    #[error("`{}` holds no {what} in PEM form", path.display())]
    Nothing {
        /// The path.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Certificate and key.
    #[error("the certificate `{}` cannot be used with its key", path.display())]
    Unusable {
        /// The certificate's path.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authority.
    #[error("the authority `{}` cannot be used", path.display())]
    Authority {
        /// The path.
        path: PathBuf,
        /// Why.
        source: VerifierBuilderError,
    },
}

/// Where certificates are.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    certificate: PathBuf,
    key: PathBuf,
    client_authority: Option<PathBuf>,
}

/// Encrypts connections. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    files: TlsFiles,
    loaded: Arc<Mutex<Loaded>>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    at: Instant,
}

impl TlsFiles {
    /// Those that the command line names.
    ///
    /// # Errors
    /// If one lacks its companion.
    pub fn of(files: &AccessFiles) -> Result<Option<Self>, AccessError> {
        let (certificate, key) = ("--tls-certificate", "--tls-key");
        match (&files.certificate, &files.key) {
            (Some(certificate), Some(key)) => Ok(Some(Self {
                certificate: certificate.clone(),
                key: key.clone(),
                client_authority: files.client_authority.clone(),
            })),
            (Some(_), None) => Err(AccessError::Incomplete { given: certificate, missing: key }),
            (None, Some(_)) => Err(AccessError::Incomplete { given: key, missing: certificate }),
            (None, None) if files.client_authority.is_some() => {
                Err(AccessError::Incomplete { given: "--tls-client-ca", missing: certificate })
            }
            (None, None) => Ok(None),
        }
    }

    fn config(&self) -> Result<ServerConfig, TlsError> {
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|_| TlsError::Nothing { path: self.key.clone(), what: "private key" })?;
        let provider = Arc::new(ring::default_provider());
        let unusable = |source| TlsError::Unusable { path: self.certificate.clone(), source };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?;
        let builder = match &self.client_authority {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(unusable)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|source| TlsError::Authority { path: path.clone(), source })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        builder.with_single_cert(chain, key).map_err(unusable)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > MOST_BYTES {
        return Err(failed(io::Error::other("it is larger than any certificate")));
    }
    fs::read(path).map_err(failed)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let nothing = || TlsError::Nothing { path: path.to_owned(), what: "certificate" };
    let pem = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or_else(nothing)
}

impl Tls {
    /// Reads certificates.
    ///
    /// # Errors
    /// If they cannot be used.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let loaded = Loaded { config: Arc::new(files.config()?), at: Instant::now() };
        Ok(Self { files, loaded: Arc::new(Mutex::new(loaded)) })
    }

    /// Whether who asks must have a certificate.
    #[must_use]
    pub fn asks_for_certificates(&self) -> bool {
        self.files.client_authority.is_some()
    }

    /// For the next connection. Files that have become wrong leave the last right ones in use.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.at.elapsed() > FRESH {
            loaded.at = Instant::now();
            match self.files.config() {
                Ok(config) => loaded.config = Arc::new(config),
                Err(error) => tracing::warn!("the certificates in use stay: {error}"),
            }
        }
        TlsAcceptor::from(Arc::clone(&loaded.config))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Tls").field(&self.files).finish()
    }
}
