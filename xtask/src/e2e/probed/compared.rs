//! A ladder with a rung that breaks, and a matrix by zone: what is compared is told by the right names.

use anyhow::Result;
use serde_json::Value;

use super::super::case::{Script, Step};
use super::super::fault::Fault;
use super::super::world::CLIENT;
use super::{READY_WITHIN, probe};
use crate::cluster::Cluster;
use crate::install::Installed;

const WEB: &str = "service/shop/web:80";
/// What comes from pods of n1 to the Service's address; the node's own packets do not come by.
const STOPS_VIP: &str = "
nft add table inet site
nft add chain inet site fw '{ type filter hook prerouting priority -150; policy accept; }'
nft add rule inet site fw ip daddr 10.96.0.80 drop
";
const CONCLUDES: &str =
    "the endpoint's address holds, the cluster IP fails (silence); pod/shop/client-2 and node/n1 get through";

const ZONE: &str = "topology.kubernetes.io/zone";
/// With one node in each zone.
const BY_ZONE: [(&str, &str); 6] = [
    ("vip_same_zone", "–"),
    ("vip_other_zone", "✓"),
    ("pod_same_zone", "–"),
    ("pod_other_zone", "✓"),
    ("node_same_zone", "–"),
    ("node_other_zone", "✓"),
];

pub(super) fn looked_at(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    let mut wrong = zones(cluster, installed)?;
    wrong.extend(broken_ladder(cluster, installed)?);
    Ok(wrong)
}

fn broken_ladder(cluster: &Cluster, installed: &Installed) -> Result<Option<String>> {
    let on_n1 = |script: &str| [Step::Node { node: "n1".to_owned(), run: Script::Same(script.to_owned()) }];
    let (inject, restore) = (on_n1(STOPS_VIP), on_n1("nft delete table inet site"));
    let fault = Fault { name: "a ladder whose rung of the cluster IP breaks", inject: &inject, restore: &restore };
    fault.under(cluster, || {
        let words = ["ladder", "--family", "ipv4", "-c", "1", "--timeout", "1s"];
        let answer = probe(cluster, installed, &words, CLIENT, WEB)?;
        let ladder = &answer["ladders"][0];
        let rungs = ladder["rungs"].as_array().map_or(&[][..], Vec::as_slice);
        let broken = rungs.iter().find(|rung| fails(rung)).map(|rung| &rung["rung"]);
        let behind = rungs.iter().find(|rung| rung["rung"] == "node_port").map(|rung| &rung["not_tried"]);
        let is_right = answer["status"] == "failed"
            && broken.is_some_and(|rung| rung == "cluster_ip")
            && behind.is_some_and(|why| why == "the cluster IP failed before")
            && ladder["conclusion"].as_str().is_some_and(|said| said.starts_with(CONCLUDES));
        Ok((!is_right).then(|| format!("{}: {answer}", ladder["conclusion"])))
    })
}

fn fails(rung: &Value) -> bool {
    let attempts = rung["attempts"].as_array().map_or(&[][..], Vec::as_slice);
    let mut own = attempts.iter().filter(|climbed| climbed["role"] == "client" || climbed["role"] == "server");
    own.any(|climbed| climbed["tally"]["failed"].as_u64() > Some(0))
}

fn zones(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    for (node, zone) in [("n1", "z1"), ("n2", "z2")] {
        cluster.kubectl(&["label", "node", node, &format!("{ZONE}={zone}")])?;
    }
    let mut answer = Value::Null;
    // The server watches: what was just written is there a moment later.
    let known = cluster.wait_until("matrix with two zones", READY_WITHIN, || {
        let words = ["matrix", "-c", "10", "--family", "ipv4"];
        answer = probe(cluster, installed, &words, CLIENT, WEB).unwrap_or_default();
        answer["matrix"]["zones"] == serde_json::json!(["z1", "z2"])
    });
    cluster.kubectl(&["label", "node", "--all", &format!("{ZONE}-")])?;
    known?;
    let rows = answer["matrix"]["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let signature = rows.iter().find(|row| row["from"] == "signature").and_then(|row| row["cells"].as_array());
    let cells = signature.map_or(&[][..], Vec::as_slice);
    let is_there =
        |(column, mark): &(&str, &str)| cells.iter().any(|cell| cell["column"] == *column && cell["mark"] == *mark);
    let missing = BY_ZONE.iter().filter(|wanted| !is_there(wanted));
    Ok(missing.map(|(column, mark)| format!("column {column} of the matrix is not {mark}: {cells:?}")).collect())
}
