//! Certificates on both sides.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use testkit::{Etcd, TlsFiles};
use tower_etcd::{Cluster, EtcdStore, Tls};
use tower_lease::{Fault, LeaseStore};

use crate::support::{claim, granted};

const LONG: Duration = Duration::from_secs(60);

struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
        }
    }

    /// A certificate for loopback and its key.
    fn issue(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params =
            CertificateParams::new(vec!["127.0.0.1".to_owned(), "etcd.test".to_owned()]).unwrap();
        (
            params.signed_by(&key, &self.issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    }
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn members_and_clients_show_certificates() {
    let pki = Pki::new();
    let dir = std::env::temp_dir().join(format!("tower-etcd-tls-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let write = |name: &str, pem: &str| {
        let path = dir.join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let (cert, server_key) = pki.issue();
    let files = TlsFiles {
        ca: write("ca.pem", &pki.issuer.pem()),
        cert: write("cert.pem", &cert),
        key: write("key.pem", &server_key),
    };
    let etcd = Etcd::builder().tls(files).start().await;
    let store = |tls: Tls| {
        let cluster = Cluster::builder(etcd.endpoints())
            .tls(tls)
            .connect_timeout(LONG)
            .request_timeout(LONG);
        EtcdStore::new(&cluster.build().unwrap())
    };
    let (cert, client_key) = pki.issue();
    let known = store(Tls::new(pki.issuer.pem()).identity(&cert, &client_key));
    let ours = claim("a", LONG);
    granted(&known, &ours).await;
    crate::support::renewed(&known, &ours).await;
    let named = store(
        Tls::new(pki.issuer.pem())
            .identity(&cert, &client_key)
            .domain("etcd.test"),
    );
    crate::support::renewed(&named, &ours).await;
    known.release(&ours).await.unwrap();

    let nobody = store(Tls::new(pki.issuer.pem()));
    assert!(
        nobody.acquire(&claim("a", LONG)).await.is_err(),
        "a client without a certificate is nobody"
    );
    let strange = store(Tls::new(Pki::new().issuer.pem()).identity(&cert, &client_key));
    let refused = strange.acquire(&claim("a", LONG)).await.unwrap_err();
    assert_eq!(
        refused.fault(),
        Fault::NotSent,
        "a member that we do not trust is told nothing: {refused:?}"
    );
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_key_is_not_shown() {
    let tls = Tls::new("ca").identity("cert", "secret");
    assert!(!format!("{tls:?}").contains("secret"));
}
