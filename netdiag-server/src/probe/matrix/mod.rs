//! The matrix: every kind of neighbour at once, so that the pattern of what works names the fault.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::Gap;
use netdiag_common::observation::series::path::PathMtuReport;
use netdiag_common::observation::series::transport::TcpClose;
use netdiag_common::observation::series::{IcmpProbe, PathMtuProbe, Probe, ProbeReport, TcpProbe};

use super::follow::Failing;
use super::ladder::twin;
use super::plan::{self, Plan, Schedule, Shot};
use super::rights::Rights;
use super::run::{self, RunError, Sender, Wish};
use super::tally::{AttemptEntry, Tally};
use crate::ask::Source;
use crate::evidence::Cluster;
use crate::evidence::object::Node;
use crate::path::{Backend, Client, Path};
use crate::question::Origin;

mod table;
mod zones;

pub use table::{COLUMNS, Cell, Column, Matrix, Row, ZONE_COLUMNS};
use zones::{Far, Zones};

/// Endpoints that are dialled one by one, and nodes.
const MAX_TARGETS: usize = 4;
/// A handful tells "always" from "sometimes"; a node is either there or not.
const FEW: Schedule = Schedule { count: 3, interval_us: 0, timeout_ms: 3_000, parallel: 3 };
/// A search has some ten sizes, each of which may be waited for.
const SEARCH: Schedule = Schedule { count: 1, interval_us: 0, timeout_ms: 25_000, parallel: 1 };

/// What a wish fills.
struct Asked {
    row: usize,
    column: Option<Column>,
    /// Where the target is known to be in a zone.
    far: Option<Far>,
}

/// A series of a row.
struct Wanted {
    /// None: to the cluster IP, whose column is told by the endpoint that it was led to.
    column: Option<Column>,
    far: Option<Far>,
    shot: Shot,
    schedule: Schedule,
}

/// Asks for everything at once and sorts what comes back into cells. What failed, too: of that which can be followed, if any, and
/// which fails always, if any, the first.
pub(super) async fn fill<S: Source, R: Rights>(
    sender: &Sender<'_, S, R>,
    plan: &Plan,
) -> Result<(Matrix, Vec<Gap>, Option<Failing>), RunError> {
    let mut matrix = Matrix::default();
    let Some(path) = &plan.path else { return Ok((matrix, Vec::new(), None)) };
    let zones = Zones::of(&sender.cluster);
    let (mut wishes, mut asked) = (Vec::new(), Vec::new());
    let mut sources: Vec<Client> = Vec::new();
    let mut gaps = Vec::new();
    let mut row_sources: Vec<usize> = Vec::new();
    for source in sources_of(plan, path, &sender.cluster) {
        match sender.not_allowed(&source).await {
            None => sources.push(source),
            Some(why) => gaps.push(Gap {
                what: format!("the row of {}", plan::words_of(&source)),
                node: Some(source.node.clone()),
                reason: netdiag_common::GapReason::Rights,
                why,
                remedy: "ask somebody who has the right".to_owned(),
            }),
        }
    }
    if let Some(zones) = &zones {
        matrix.zones = zones.names();
        matrix.without_zone = zones::without(zones, &sources, path);
    }
    for is_v4 in [true, false] {
        if !path.backends.iter().any(|b| b.address.is_ipv4() == is_v4)
            && !path.addresses.iter().any(|a| a.is_ipv4() == is_v4)
        {
            continue;
        }
        let example: IpAddr = if is_v4 { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
        if !plan.request.family.holds(example) {
            continue;
        }
        for (index, source) in sources.iter().enumerate() {
            let row = matrix.rows.len();
            matrix.rows.push(Row::empty(source, is_v4, zones.is_some()));
            row_sources.push(index);
            for Wanted { column, far, shot, schedule } in
                wanted(plan, path, source, is_v4, &sender.cluster, zones.as_ref())
            {
                wishes.push(Wish { client: source.clone(), shot, schedule });
                asked.push(Asked { row, column, far });
            }
        }
    }
    let (series, unseen) = sender.send(plan, &wishes).await;
    gaps.extend(unseen);
    let fails = wishes.iter().zip(&series).filter_map(|(wish, series)| Failing::of(wish, &series.tally));
    let failing = fails.min_by_key(|failing| (!failing.has_tuple(), failing.is_flaky));
    for (asked, series) in asked.iter().zip(series) {
        let source = &sources[row_sources[asked.row]];
        let row = &mut matrix.rows[asked.row];
        match asked.column {
            Some(Column::BigPackets) => row.set(Column::BigPackets, big_packets(&series.tally)),
            Some(column) => {
                let attempts: Vec<&AttemptEntry> = series.tally.attempts.iter().collect();
                let by_zone = asked.far.and_then(|far| by_zone(column, far));
                for column in std::iter::once(column).chain(by_zone) {
                    row.add(column, &attempts, &series.tally);
                }
            }
            None => vip(row, source, path, &series.tally, zones.as_ref()),
        }
    }
    matrix.sign();
    Ok((matrix, gaps, failing))
}

/// The client, a twin on another node, the client's node, and one endpoint for the way to itself.
fn sources_of(plan: &Plan, path: &Path, cluster: &Cluster) -> Vec<Client> {
    let mut sources = vec![plan.client.clone()];
    if let Some(pod) = &plan.client.pod {
        sources.extend(twin(pod, cluster).filter(|twin| twin.node != plan.client.node));
    }
    for node in sources.clone() {
        let of_node = plan::client(&Origin::Node { name: node.node.clone() }, cluster).ok();
        if let Some(node) =
            of_node.filter(|node| !sources.iter().any(|known| known.pod.is_none() && known.node == node.node))
        {
            sources.push(node);
        }
    }
    // One that gets connections, and on the client's node: what is wrong there is what was asked about.
    let mut endpoints: Vec<&Backend> = path.backends.iter().filter(|backend| !backend.terminating).collect();
    endpoints.sort_by_key(|backend| (!backend.ready, backend.node != plan.client.node));
    let own = endpoints.iter().find_map(|backend| plan::client_of(backend.pod.as_ref()?, cluster));
    let is_new = |client: &Client| !sources.iter().any(|known| known.reference.same_object(&client.reference));
    sources.extend(own.filter(is_new));
    sources
}

/// The series of one row.
fn wanted(
    plan: &Plan,
    path: &Path,
    source: &Client,
    is_v4: bool,
    cluster: &Cluster,
    zones: Option<&Zones>,
) -> Vec<Wanted> {
    let of_family = |address: IpAddr| address.is_ipv4() == is_v4;
    let far = |node: &str| zones.and_then(|zones| zones.far(&source.node, node));
    let few = |column, far, shot| Wanted { column: Some(column), far, shot, schedule: FEW };
    let mut all = Vec::new();
    let Some(pod) = &source.pod else {
        let others = cluster.nodes.iter().filter(|node| node.metadata.name != source.node);
        let address = |node: &Node| node.internal_ips().find(|address| of_family(*address));
        let others = others.filter_map(|node| Some((far(&node.metadata.name), address(node)?)));
        let targets = zones::in_turn(others.collect(), MAX_TARGETS);
        all.extend(targets.into_iter().map(|(far, address)| few(Column::NodeToNode, far, echo(address))));
        return all;
    };
    let port = path.port.unwrap_or(0);
    let vip = path.addresses.iter().copied().find(|address| of_family(*address)).map(|ip| SocketAddr::new(ip, port));
    let schedule = Schedule { parallel: 5, ..plan::schedule(&plan.request, 1) };
    all.extend(vip.map(|to| Wanted { column: None, far: None, shot: tcp(to), schedule }));
    let is_endpoint = path
        .backends
        .iter()
        .any(|backend| backend.pod.as_ref().is_some_and(|own| own.metadata.uid == pod.metadata.uid));
    if is_endpoint {
        return all;
    }
    // Endpoints that are not ready are still reached at their own address.
    let there: Vec<&Backend> = path.backends.iter().filter(|b| of_family(b.address) && !b.terminating).collect();
    for (column, here) in [(Column::PodSameNode, true), (Column::PodOtherNode, false)] {
        let of_column = there.iter().filter(|backend| (backend.node == source.node) == here);
        let of_column = of_column.map(|backend| (far(&backend.node), SocketAddr::new(backend.address, backend.port)));
        let targets = zones::in_turn(of_column.collect(), MAX_TARGETS);
        all.extend(targets.into_iter().map(|(far, address)| few(column, far, tcp(address))));
    }
    let also = |column, shot, schedule| Wanted { column: Some(column), far: None, shot, schedule };
    if let Some(far) = there.iter().find(|backend| backend.node != source.node) {
        let to = SocketAddr::new(far.address, 0);
        let probe = Probe::PathMtu(PathMtuProbe { to, from_bytes: None, tries: 2, source_port: None });
        all.push(also(Column::BigPackets, Shot { to: to.ip().to_string(), probe }, SEARCH));
    }
    if let Some(name) = plan::name_of(path) {
        all.push(also(Column::Name, run::lookup(plan, &name), run::LOOKUP));
    }
    all
}

fn tcp(to: SocketAddr) -> Shot {
    Shot { to: to.to_string(), probe: Probe::Tcp(TcpProbe { to, source_port: None, close: TcpClose::default() }) }
}

fn echo(to: IpAddr) -> Shot {
    let probe = IcmpProbe { to, bytes: 56, ttl: None, dont_fragment: false, scope: None, identifier: None };
    Shot { to: to.to_string(), probe: Probe::Icmp(probe) }
}

/// The second column of what goes to another node.
fn by_zone(column: Column, far: Far) -> Option<Column> {
    match (column, far) {
        (Column::PodOtherNode, Far::SameZone) => Some(Column::PodSameZone),
        (Column::PodOtherNode, Far::OtherZone) => Some(Column::PodOtherZone),
        (Column::NodeToNode, Far::SameZone) => Some(Column::NodeSameZone),
        (Column::NodeToNode, Far::OtherZone) => Some(Column::NodeOtherZone),
        _ => None,
    }
}

/// Attempts to the cluster IP belong to the column of the endpoint that they were led to. Those that were led nowhere belong to
/// every column that they could have been led to.
fn vip(row: &mut Row, source: &Client, path: &Path, tally: &Tally, zones: Option<&Zones>) {
    let node_of = |attempt: &AttemptEntry| {
        let endpoint = attempt.endpoint.parse::<SocketAddr>().ok()?;
        path.backends.iter().find(|b| b.address == endpoint.ip()).map(|backend| backend.node.clone())
    };
    let uid = source.pod.as_ref().map(|pod| pod.metadata.uid.as_str());
    let is_own = |backend: &Backend| backend.pod.as_ref().is_some_and(|pod| Some(pod.metadata.uid.as_str()) == uid);
    if path.backends.iter().any(is_own) {
        let itself = |attempt: &&AttemptEntry| match attempt.endpoint.parse::<SocketAddr>() {
            Ok(endpoint) => path.backends.iter().any(|backend| backend.address == endpoint.ip() && is_own(backend)),
            Err(_) => attempt.failure.is_some(),
        };
        let led: Vec<&AttemptEntry> = tally.attempts.iter().filter(itself).collect();
        row.add(Column::SelfVip, &led, tally);
        return;
    }
    let ready: Vec<&Backend> = path.ready_backends().collect();
    let mut fill = |column: Column, is_there: &dyn Fn(&str) -> bool| {
        let possible = ready.is_empty() || ready.iter().any(|backend| is_there(&backend.node));
        let led = |attempt: &&AttemptEntry| node_of(attempt).map_or(possible, |node| is_there(&node));
        let led: Vec<&AttemptEntry> = tally.attempts.iter().filter(led).collect();
        row.add(column, &led, tally);
    };
    fill(Column::VipSameNode, &|node| node == source.node);
    fill(Column::VipOtherNode, &|node| node != source.node);
    if let Some(zones) = zones.filter(|zones| zones.knows(&source.node)) {
        fill(Column::VipSameZone, &|node| zones.far(&source.node, node) == Some(Far::SameZone));
        fill(Column::VipOtherZone, &|node| zones.far(&source.node, node) == Some(Far::OtherZone));
    }
}

/// Packets that are too big and are told so are well: TCP learns by it.
fn big_packets(tally: &Tally) -> Cell {
    let mut cell = Cell::nothing(Column::BigPackets);
    let report =
        tally.attempts.iter().find_map(|attempt| serde_json::from_value::<ProbeReport>(attempt.report.clone()).ok());
    let Some(ProbeReport::PathMtu(PathMtuReport { path_mtu, black_hole, device_mtu, .. })) = report else {
        "the search brought nothing".clone_into(&mut cell.why);
        return cell;
    };
    let Some(path_mtu) = path_mtu else {
        "echoes of no size are answered".clone_into(&mut cell.why);
        return cell;
    };
    (cell.made, cell.failed) = (1, u64::from(black_hole));
    if black_hole { "✗t" } else { "✓" }.clone_into(&mut cell.mark);
    let device = device_mtu.map(|mtu| format!(" of {mtu}")).unwrap_or_default();
    cell.why = if black_hole {
        format!("packets above {path_mtu}{device} bytes vanish and nobody says so")
    } else {
        format!("{path_mtu}{device} bytes get through")
    };
    cell
}
