//! What attempts of the larger kinds are made with: the series' own code, in the round's thread, within the agent's limits.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use netdiag_common::observation::mesh::{Target, TargetProbe};
use netdiag_common::observation::resolver::Resolver;
use netdiag_common::observation::series::http::HttpVersion;
use netdiag_common::observation::series::tls::TlsWords;
use netdiag_common::observation::series::{HttpProbe, TlsProbe};

use crate::host::resolver;
use crate::probe::series::{Shares, Single};

/// Bytes of a body that are read: a health check has some hundred.
const BODY_BYTES: u32 = 16 * 1024;

/// By whom is asked for names; none: whom the node's resolv.conf names.
pub(super) struct Means {
    by_dns: BTreeMap<Option<IpAddr>, Single>,
}

impl Means {
    /// Empty where no target needs any. `proc` shows the node's processes.
    pub fn new(targets: &[Target], shares: &Shares, proc: &Path) -> Self {
        let mut by_dns = BTreeMap::new();
        for dns in targets.iter().filter_map(|target| dns(&target.probe)) {
            by_dns.entry(dns).or_insert_with(|| shares.single(resolver_of(dns, proc)));
        }
        Self { by_dns }
    }

    /// None for the kinds that need none.
    pub fn of(&self, probe: &TargetProbe) -> Option<&Single> {
        self.by_dns.get(&dns(probe)?)
    }

    /// Waits a moment for connections that are being closed.
    pub async fn farewell(&self) {
        for single in self.by_dns.values() {
            single.farewell().await;
        }
    }
}

/// None where a kind looks no names up and needs nothing of it.
#[expect(clippy::option_option, reason = "to ask the node's own servers is not to ask nobody")]
fn dns(probe: &TargetProbe) -> Option<Option<IpAddr>> {
    match probe {
        TargetProbe::Http { dns, .. } => Some(*dns),
        TargetProbe::Tls { .. } => Some(None),
        TargetProbe::Tcp { .. } | TargetProbe::Icmp { .. } | TargetProbe::Dns { .. } => None,
    }
}

/// Without one each attempt that needs a name says so.
fn resolver_of(dns: Option<IpAddr>, proc: &Path) -> Option<Arc<Resolver>> {
    if let Some(server) = dns {
        // A name with a dot is asked for as it is.
        return Some(Arc::new(Resolver { nameservers: vec![server], ndots: 1, ..Resolver::default() }));
    }
    match resolver::read_node(proc) {
        Ok(found) => found.map(Arc::new),
        Err(error) => {
            tracing::warn!(%error, "the mesh looks no names up: the node's resolv.conf cannot be read");
            None
        }
    }
}

pub(super) fn tls(to: SocketAddr, server_name: Option<&str>, authorities: Option<&str>) -> TlsProbe {
    let (server_name, authorities) = (server_name.map(ToOwned::to_owned), authorities.map(ToOwned::to_owned));
    let words = TlsWords { server_name, alpn: Vec::new(), authorities };
    TlsProbe { to, source_port: None, words, each_version: false }
}

pub(super) fn http(url: &str, expect: &[u16], authorities: Option<&str>) -> HttpProbe {
    HttpProbe {
        url: url.to_owned(),
        to: None,
        source_port: None,
        version: HttpVersion::Any,
        method: "GET".to_owned(),
        headers: Vec::new(),
        tls: TlsWords { authorities: authorities.map(ToOwned::to_owned), ..TlsWords::default() },
        any_certificate: false,
        redirects: 0,
        body_bytes: BODY_BYTES,
        expect: expect.to_vec(),
        grpc_health: None,
    }
}
