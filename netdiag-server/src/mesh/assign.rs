//! Who probes whom in which round: everybody everybody in small clusters, a constant number of rotating peers in large ones.
//!
//! Nodes stand in a ring, in the order of a hash of their names, so that neighbours there are no neighbours in a rack. In round
//! `r` each node probes the nodes at [`NEIGHBOURS`] distances further on; the distances move with the rounds through all there
//! are, so that each pair's turn comes, every pair's once in each direction. Besides, each ordered pair of zones is probed in
//! every round, by as many nodes as the smaller of the two has: nobody is probed more than probing costs it.

use std::collections::BTreeMap;

/// Peers of the ring in one round.
pub const NEIGHBOURS: usize = 16;
/// Representatives of other zones in one round.
pub const ZONES: usize = 4;
/// Up to so many nodes everybody probes everybody: that is no more peers than in a large cluster.
pub const FULL_MESH_NODES: usize = NEIGHBOURS + ZONES + 1;

/// The nodes of a cluster in their ring and zones.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Node at each place of the ring.
    ring: Vec<usize>,
    /// Place of each node.
    place: Vec<usize>,
    /// Nodes of each zone, in the ring's order.
    zones: Vec<Vec<usize>>,
    /// Zone of each node, and its place there.
    zone: Vec<(usize, usize)>,
}

impl Layout {
    /// Name and zone of each node. Names are distinct; nodes without a zone share the empty one.
    pub fn new(nodes: &[(&str, &str)]) -> Self {
        let mut ring: Vec<usize> = (0..nodes.len()).collect();
        ring.sort_by_key(|node| (hash(nodes[*node].0), nodes[*node].0));
        let mut place = vec![0; nodes.len()];
        let mut by_zone: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, node) in ring.iter().enumerate() {
            place[*node] = at;
            by_zone.entry(nodes[*node].1).or_default().push(*node);
        }
        let zones: Vec<Vec<usize>> = by_zone.into_values().collect();
        let mut zone = vec![(0, 0); nodes.len()];
        for (number, members) in zones.iter().enumerate() {
            for (at, node) in members.iter().enumerate() {
                zone[*node] = (number, at);
            }
        }
        Self { ring, place, zones, zone }
    }

    /// Rounds after which every ordered pair was probed, whichever is the first.
    pub fn cycle(&self) -> u64 {
        match self.ring.len() {
            nodes if nodes <= FULL_MESH_NODES => 1,
            nodes => (turns(nodes) as u64).div_ceil(NEIGHBOURS as u64),
        }
    }

    /// The peers that `node` probes in this round, each once, in no order that means anything.
    pub fn peers(&self, node: usize, round: u64) -> Vec<usize> {
        let nodes = self.ring.len();
        if nodes <= FULL_MESH_NODES {
            return (0..nodes).filter(|peer| *peer != node).collect();
        }
        let turns = turns(nodes);
        let first = at(round, NEIGHBOURS, turns);
        let own = self.place[node];
        let neighbour = |step: usize| self.ring[(own + distance((first + step) % turns, nodes)) % nodes];
        let mut peers: Vec<usize> = Vec::with_capacity(NEIGHBOURS + ZONES);
        for peer in (0..NEIGHBOURS).map(neighbour).chain(self.representatives(node, round)) {
            if !peers.contains(&peer) {
                peers.push(peer);
            }
        }
        peers
    }

    /// At most one of each of the [`ZONES`] zones whose turn it is.
    fn representatives(&self, node: usize, round: u64) -> impl Iterator<Item = usize> {
        let (zone, rank) = self.zone[node];
        let own = &self.zones[zone];
        let others = self.zones.len() - 1;
        let first = if others == 0 { 0 } else { at(round, ZONES, others) };
        (0..ZONES.min(others)).filter_map(move |step| {
            let other = &self.zones[(zone + 1 + (first + step) % others) % self.zones.len()];
            // As many of ours as the other zone has take part, one for each of its nodes, and others in the next round.
            let turn = (rank + at(round, 1, own.len())) % own.len();
            (turn < own.len().min(other.len())).then(|| other[(turn + at(round, 1, other.len())) % other.len()])
        })
    }
}

/// The first of `each` things of `all` that a round takes, when rounds go round them.
fn at(round: u64, each: usize, all: usize) -> usize {
    let (each, all) = (each as u64 % all as u64, all as u64);
    usize::try_from(round % all * each % all).expect("it is below a usize")
}

/// Turns of one cycle: every distance in both directions. In a ring of an even number the longest one is its own opposite, and
/// has two turns nevertheless.
fn turns(nodes: usize) -> usize {
    nodes / 2 * 2
}

/// Distances in the order of their turns: first those to one side, then the same to the other, so that each pair comes twice in
/// a cycle with half of it between.
fn distance(turn: usize, nodes: usize) -> usize {
    let half = nodes / 2;
    if turn < half { turn + 1 } else { nodes - (turn - half + 1) }
}

/// FNV-1a of 64 bits: the same in every process, unlike the standard library's.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn names(zones: &[u8]) -> Vec<(String, String)> {
        zones.iter().enumerate().map(|(number, zone)| (format!("node-{number}"), format!("zone-{zone}"))).collect()
    }

    fn layout(named: &[(String, String)]) -> Layout {
        let nodes: Vec<(&str, &str)> = named.iter().map(|(name, zone)| (name.as_str(), zone.as_str())).collect();
        Layout::new(&nodes)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn nobody_probes_or_is_probed_more_than_in_a_full_mesh_of_the_bound(
            zones in prop::collection::vec(0_u8..7, 1..160),
            round in any::<u64>(),
        ) {
            let layout = layout(&names(&zones));
            let mut probed = vec![0; zones.len()];
            for node in 0..zones.len() {
                let peers = layout.peers(node, round);
                let distinct: BTreeSet<usize> = peers.iter().copied().collect();
                prop_assert_eq!(distinct.len(), peers.len(), "a peer is named twice");
                prop_assert!(!distinct.contains(&node), "a node probes itself");
                prop_assert!(peers.len() < FULL_MESH_NODES);
                for peer in peers {
                    probed[peer] += 1;
                }
            }
            prop_assert!(probed.into_iter().all(|times| times < FULL_MESH_NODES));
        }

        #[test]
        fn every_pair_has_its_turn_in_one_cycle_from_any_round_on(
            zones in prop::collection::vec(0_u8..7, 2..120),
            first in 0..u64::MAX / 2,
        ) {
            let layout = layout(&names(&zones));
            let mut seen = BTreeSet::new();
            for round in first..first + layout.cycle() {
                for node in 0..zones.len() {
                    seen.extend(layout.peers(node, round).into_iter().map(|peer| (node, peer)));
                }
            }
            prop_assert_eq!(seen.len(), zones.len() * (zones.len() - 1));
        }

        #[test]
        fn zones_probe_each_other_in_every_round_while_there_are_few(
            zones in prop::collection::vec(0_u8..5, 1..120),
            round in any::<u64>(),
        ) {
            let layout = layout(&names(&zones));
            let mut seen = BTreeSet::new();
            for node in 0..zones.len() {
                seen.extend(layout.peers(node, round).into_iter().map(|peer| (zones[node], zones[peer])));
            }
            for from in &zones {
                for to in zones.iter().filter(|to| *to != from) {
                    prop_assert!(seen.contains(&(*from, *to)), "{from} does not probe {to}");
                }
            }
        }
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let named = names(&[0; 60]);
        let mut turned = named.clone();
        turned.rotate_left(17);
        let of = |named: &[(String, String)]| -> BTreeSet<(String, String)> {
            let layout = layout(named);
            let peers =
                |node: usize| layout.peers(node, 3).into_iter().map(move |peer| (node, peer)).collect::<Vec<_>>();
            let pairs = (0..named.len()).flat_map(peers);
            pairs.map(|(node, peer)| (named[node].0.clone(), named[peer].0.clone())).collect()
        };
        assert_eq!(of(&named), of(&turned));
    }

    #[test]
    fn a_cluster_of_one_or_none_probes_nobody() {
        assert!(layout(&names(&[0])).peers(0, 9).is_empty());
        assert_eq!(layout(&[]).cycle(), 1);
    }
}
