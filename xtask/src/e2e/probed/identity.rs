//! As whom packets are sent: rules that match a socket's owner or a packet's mark meet the probes that say so, and no others. The
//! agents were given the capability SETUID for it, which the manifests leave out.

use anyhow::Result;
use serde_json::Value;

use super::super::observed::Space;
use super::super::world::CLIENT;
use super::probe;
use crate::cluster::Cluster;
use crate::install::Installed;

const RULES: &str = "
nft add table inet whose
nft add chain inet whose out '{ type filter hook output priority 0; policy accept; }'
nft add rule inet whose out meta skuid 4321 tcp dport 8080 drop
nft add rule inet whose out meta mark 42 tcp dport 8080 drop
";
const WITHOUT: &str = "nft delete table inet whose";

/// The identity, and whether its packets are dropped.
const ASKED: [(&[&str], bool); 4] =
    [(&[], false), (&["--uid", "4322"], false), (&["--uid", "4321"], true), (&["--mark", "42"], true)];

pub(super) fn matched(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    let space = Space::of_pod(cluster, "shop", "client")?;
    space.sh(RULES)?;
    let wrong = ASKED.iter().map(|(identity, is_dropped)| not_as_told(cluster, installed, identity, *is_dropped));
    let wrong: Result<Vec<Option<String>>> = wrong.collect();
    space.sh(WITHOUT)?;
    Ok(wrong?.into_iter().flatten().collect())
}

fn not_as_told(
    cluster: &Cluster,
    installed: &Installed,
    identity: &[&str],
    is_dropped: bool,
) -> Result<Option<String>> {
    let words = [&["tcp", "-c", "1", "--timeout", "1s"][..], identity].concat();
    let answer = probe(cluster, installed, &words, CLIENT, "pod/shop/web-2:8080")?;
    let series = answer["series"].as_array().map_or(&[][..], Vec::as_slice);
    let is_silent = |series: &Value| {
        let failure = &series["tally"]["failures"][0];
        failure["class"] == "silence" && failure["stage"] == "connect"
    };
    let is_well = |series: &Value| series["status"] == "well";
    let as_told = if is_dropped { series.iter().all(is_silent) } else { series.iter().all(is_well) };
    let is_right = series.len() == 2 && as_told;
    Ok((!is_right).then(|| format!("probes as {identity:?}, dropped: {is_dropped}: {answer}")))
}
