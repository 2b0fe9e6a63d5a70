//! The path MTU of one way, and the value to set where larger packets do not get through.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::Netns;
use netdiag_common::observation::series::{PathMtuReport, ProbeReport};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SeriesEntry;
use super::words::{named, report};
use crate::evidence::Cluster;
use crate::path::Client;
use crate::probe::{Probed, Series, words_of};

/// IP's and TCP's headers without options, bytes: what an MSS leaves out (RFC 6691 §2).
const HEADERS_V4: u32 = 40;
const HEADERS_V6: u32 = 60;
/// What every link of IPv6 carries (RFC 8200 §5).
const LEAST_V6: u32 = 1_280;

/// The largest packet that one way carries, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MtuAdvice {
    /// Who sent: `pod/shop/client on n1`.
    pub from: String,
    /// The way back: `to` of the series that went there. Empty for the way there.
    pub back_of: String,
    /// The largest packet that got through, bytes with the IP header; of several attempts the least.
    pub path_mtu: u32,
    /// What the sender's device takes, where that is known.
    pub device_mtu: Option<u32>,
    /// The MTU that the sender's device should have; none where there is nothing to set.
    pub set_mtu: Option<u32>,
    /// The MSS to which TCP could be clamped instead.
    pub set_mss: Option<u32>,
    /// One sentence.
    pub words: String,
}

/// None where no size got through, and for everything that is no search.
pub(super) fn advice(series: &Series, probed: &Probed) -> Option<MtuAdvice> {
    let reports = series.tally.attempts.iter().filter_map(|attempt| match report(attempt)? {
        ProbeReport::PathMtu(report) => Some((attempt.to.as_str(), report)),
        _ => None,
    });
    let known = reports.filter_map(|(to, report)| Some((to, report.path_mtu?, report)));
    let (to, path_mtu, report) = known.min_by_key(|(_, path_mtu, _)| *path_mtu)?;
    let to = to.parse::<IpAddr>().or_else(|_| to.parse::<SocketAddr>().map(|to| to.ip())).ok()?;
    let client = series.back.as_ref().map_or(&probed.plan.client, |back| &back.from);
    let place = if client.pod.is_some() { format!(" on {}", client.node) } else { String::new() };
    let found = Found { path_mtu, is_v4: to.is_ipv4(), report: &report, cluster: &probed.cluster };
    let (set_mtu, words) = found.words(client);
    Some(MtuAdvice {
        from: format!("{}{place}", words_of(client)),
        back_of: series.back.as_ref().map(|back| back.of.clone()).unwrap_or_default(),
        path_mtu,
        device_mtu: report.device_mtu,
        set_mtu,
        set_mss: set_mtu.map(|_| found.mss()),
        words,
    })
}

struct Found<'f> {
    path_mtu: u32,
    is_v4: bool,
    report: &'f PathMtuReport,
    cluster: &'f Cluster,
}

impl Found<'_> {
    fn mss(&self) -> u32 {
        self.path_mtu.saturating_sub(if self.is_v4 { HEADERS_V4 } else { HEADERS_V6 })
    }

    /// The MTU to set, and the sentence.
    fn words(&self, client: &Client) -> (Option<u32>, String) {
        let (Self { path_mtu, report, .. }, mss) = (self, self.mss());
        let name = |address: IpAddr| named(address, self.cluster);
        let said = report.said_by.map(|who| format!("{} says that larger packets are too big", name(who)));
        let why = match (report.black_hole, said) {
            (true, _) => {
                let behind = report.last_hop.map(|hop| format!(" behind {}", name(hop))).unwrap_or_default();
                format!("larger packets vanish{behind} and nobody says so")
            }
            (false, Some(said)) => {
                format!("{said}: TCP learns it, and this spares each new way the packets that are lost first")
            }
            (false, None) if report.device_mtu.is_some_and(|device| *path_mtu < device) => {
                return (
                    None,
                    format!("packets of {path_mtu} bytes get through; whether larger ones do was not found out"),
                );
            }
            (false, None) => {
                return (
                    None,
                    format!(
                        "nothing to set: packets of {path_mtu} bytes, the most that the sender's device takes, get through"
                    ),
                );
            }
        };
        if !self.is_v4 && *path_mtu < LEAST_V6 {
            let words = format!(
                "no MTU helps: IPv6 needs {LEAST_V6} bytes on every link (RFC 8200 §5), and {path_mtu} get through; repair the way: {why}"
            );
            return (None, words);
        }
        let device = match (&client.netns, &client.pod) {
            (Netns::Pod(_), Some(_)) => {
                format!("the pods' interfaces on node {} (the CNI plugin's setting)", client.node)
            }
            _ => format!("the device of node {} that leads there", client.node),
        };
        let instead = report.device_mtu.map(|device| format!(" instead of {device}")).unwrap_or_default();
        let words = format!(
            "set the MTU of {device} to {path_mtu}{instead}, or clamp TCP's MSS to {mss} on the way (nft: tcp flags syn tcp option \
             maxseg size set {mss}): {why}"
        );
        (Some(*path_mtu), words)
    }
}

/// Both ways of each target where both are known, and whether they differ.
pub(super) fn ways(series: &[SeriesEntry]) -> Vec<String> {
    let both = series.iter().filter_map(|back| {
        let back = back.mtu.as_ref().filter(|mtu| !mtu.back_of.is_empty())?;
        let there = series.iter().find(|series| series.to == back.back_of)?;
        Some((&there.to, there.mtu.as_ref()?.path_mtu, back.path_mtu))
    });
    let words = both.map(|(to, there, back)| {
        if there == back {
            return format!("path MTU to {to}: {there} bytes there and back");
        }
        format!(
            "path MTU to {to}: {there} bytes there and {back} bytes back: the two ways differ, so keep to the smaller one, {}, on both",
            there.min(back)
        )
    });
    words.collect()
}
