//! The matrix: every kind of neighbour at once, so that the pattern of what works names the fault.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::Gap;
use netdiag_common::observation::series::path::PathMtuReport;
use netdiag_common::observation::series::transport::TcpClose;
use netdiag_common::observation::series::{FailureClass, IcmpProbe, PathMtuProbe, Probe, ProbeReport, TcpProbe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ladder::twin;
use super::plan::{self, Plan, Schedule, Shot};
use super::rights::Rights;
use super::run::{self, RunError, Sender, Wish};
use super::tally::{AttemptEntry, Tally};
use crate::ask::Source;
use crate::evidence::Cluster;
use crate::path::{Backend, Client, Path};
use crate::question::Origin;

/// Endpoints that are dialled one by one, and nodes.
const MAX_TARGETS: usize = 4;
/// A handful tells "always" from "sometimes"; a node is either there or not.
const FEW: Schedule = Schedule { count: 3, interval_us: 0, timeout_ms: 3_000, parallel: 3 };
/// A search has some ten sizes, each of which may be waited for.
const SEARCH: Schedule = Schedule { count: 1, interval_us: 0, timeout_ms: 25_000, parallel: 1 };

/// What the columns are, in their order.
pub const COLUMNS: [Column; 8] = [
    Column::VipSameNode,
    Column::VipOtherNode,
    Column::PodSameNode,
    Column::PodOtherNode,
    Column::NodeToNode,
    Column::SelfVip,
    Column::Name,
    Column::BigPackets,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Column {
    /// The cluster IP, led to an endpoint on the client's node.
    VipSameNode,
    VipOtherNode,
    /// An endpoint's own address.
    PodSameNode,
    PodOtherNode,
    NodeToNode,
    /// The cluster IP, from an endpoint, led to itself.
    SelfVip,
    Name,
    /// The largest packets of the client's device reach an endpoint on another node, or it is told that they do not.
    BigPackets,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Matrix {
    pub rows: Vec<Row>,
}

/// One source and family. The last row of a family is its signature: the worst of each column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    /// `pod/shop/client on n1`; `signature`.
    pub from: String,
    /// `IPv4`, `IPv6`
    pub family: String,
    /// In the order of the table's columns.
    pub cells: Vec<Cell>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cell {
    pub column: Column,
    /// `✓`; `✗r` refused, `✗t` timed out, `✗n` unreachable, `✗` failed otherwise, with `2/3` before it where only some do; `–` where
    /// there is nothing to try.
    pub mark: String,
    pub made: u64,
    pub failed: u64,
    /// Of the most frequent failure, or why there was nothing to try.
    pub why: String,
}

/// What a wish fills.
struct Asked {
    row: usize,
    column: Option<Column>,
}

/// Asks for everything at once and sorts what comes back into cells.
pub(super) async fn fill<S: Source, R: Rights>(
    sender: &Sender<'_, S, R>,
    plan: &Plan,
) -> Result<(Matrix, Vec<Gap>), RunError> {
    let mut matrix = Matrix { rows: Vec::new() };
    let Some(path) = &plan.path else { return Ok((matrix, Vec::new())) };
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
            matrix.rows.push(empty_row(source, is_v4));
            row_sources.push(index);
            for (column, shot, schedule) in wanted(plan, path, source, is_v4, &sender.cluster) {
                wishes.push(Wish { client: source.clone(), shot, schedule });
                asked.push(Asked { row, column });
            }
        }
    }
    let (series, unseen) = sender.send(plan, &wishes).await;
    gaps.extend(unseen);
    for (asked, series) in asked.iter().zip(series) {
        let source = &sources[row_sources[asked.row]];
        let row = &mut matrix.rows[asked.row];
        match asked.column {
            Some(Column::BigPackets) => row.set(Column::BigPackets, big_packets(&series.tally)),
            Some(column) => row.add(column, &series.tally.attempts.iter().collect::<Vec<_>>(), &series.tally),
            None => vip(row, source, path, &series.tally),
        }
    }
    sign(&mut matrix);
    Ok((matrix, gaps))
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

/// The series of one row. Without a column: to the cluster IP, whose column is told by the endpoint that it was led to.
fn wanted(
    plan: &Plan,
    path: &Path,
    source: &Client,
    is_v4: bool,
    cluster: &Cluster,
) -> Vec<(Option<Column>, Shot, Schedule)> {
    let of_family = |address: IpAddr| address.is_ipv4() == is_v4;
    let mut all = Vec::new();
    let Some(pod) = &source.pod else {
        let others = cluster.nodes.iter().filter(|node| node.metadata.name != source.node);
        let addresses = others.filter_map(|node| node.internal_ips().find(|address| of_family(*address)));
        all.extend(addresses.take(MAX_TARGETS).map(|address| (Some(Column::NodeToNode), echo(address), FEW)));
        return all;
    };
    let port = path.port.unwrap_or(0);
    let vip = path.addresses.iter().copied().find(|address| of_family(*address)).map(|ip| SocketAddr::new(ip, port));
    let schedule = Schedule { parallel: 5, ..plan::schedule(&plan.request, 1) };
    all.extend(vip.map(|to| (None, tcp(to), schedule)));
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
        let of_column = there.iter().filter(|backend| (backend.node == source.node) == here).take(MAX_TARGETS);
        all.extend(of_column.map(|backend| (Some(column), tcp(SocketAddr::new(backend.address, backend.port)), FEW)));
    }
    if let Some(far) = there.iter().find(|backend| backend.node != source.node) {
        let to = SocketAddr::new(far.address, 0);
        let probe = Probe::PathMtu(PathMtuProbe { to, from_bytes: None, tries: 2 });
        all.push((Some(Column::BigPackets), Shot { to: to.ip().to_string(), probe }, SEARCH));
    }
    if let Some(name) = plan::name_of(path) {
        all.push((Some(Column::Name), run::lookup(plan, &name), run::LOOKUP));
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

fn empty_row(source: &Client, is_v4: bool) -> Row {
    let place = if source.pod.is_some() { format!(" on {}", source.node) } else { String::new() };
    Row {
        from: format!("{}{place}", plan::words_of(source)),
        family: if is_v4 { "IPv4" } else { "IPv6" }.to_owned(),
        cells: COLUMNS.iter().map(|column| Cell::nothing(*column)).collect(),
    }
}

/// Attempts to the cluster IP belong to the column of the endpoint that they were led to. Those that were led nowhere belong to
/// every column that they could have been led to.
fn vip(row: &mut Row, source: &Client, path: &Path, tally: &Tally) {
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
    for (column, here) in [(Column::VipSameNode, true), (Column::VipOtherNode, false)] {
        let possible = ready.is_empty() || ready.iter().any(|backend| (backend.node == source.node) == here);
        let led = |attempt: &&AttemptEntry| node_of(attempt).map_or(possible, |node| (node == source.node) == here);
        let led: Vec<&AttemptEntry> = tally.attempts.iter().filter(led).collect();
        row.add(column, &led, tally);
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

/// The signature of each family: in each column the worst of its rows.
fn sign(matrix: &mut Matrix) {
    let mut families: Vec<String> = matrix.rows.iter().map(|row| row.family.clone()).collect();
    families.dedup();
    for family in families {
        let of_family = || matrix.rows.iter().filter(|row| row.family == family);
        let worst = |column: &Column| {
            let cells = of_family().filter_map(|row| row.cells.iter().find(|cell| cell.column == *column));
            cells.max_by_key(|cell| (cell.failed * 1_000 / cell.made.max(1), cell.made > 0)).cloned()
        };
        let cells = COLUMNS.iter().filter_map(worst).collect();
        let after = matrix.rows.iter().rposition(|row| row.family == family).map_or(0, |last| last + 1);
        matrix.rows.insert(after, Row { from: "signature".to_owned(), family, cells });
    }
}

impl Row {
    fn set(&mut self, column: Column, cell: Cell) {
        if let Some(own) = self.cells.iter_mut().find(|own| own.column == column) {
            *own = cell;
        }
    }

    fn add(&mut self, column: Column, attempts: &[&AttemptEntry], tally: &Tally) {
        let Some(cell) = self.cells.iter_mut().find(|cell| cell.column == column) else { return };
        cell.made += attempts.len() as u64;
        let failed: Vec<_> = attempts.iter().filter_map(|attempt| attempt.failure.as_ref()).collect();
        cell.failed += failed.len() as u64;
        if let Some(failure) = failed.first() {
            cell.why.clone_from(&failure.why);
            mark(failure.class).clone_into(&mut cell.mark);
        } else if attempts.is_empty() && cell.made == 0 && !tally.untried_because.is_empty() {
            cell.why.clone_from(&tally.untried_because);
        } else if cell.failed == 0 && cell.made > 0 {
            "✓".clone_into(&mut cell.mark);
        }
        if cell.failed > 0 && cell.failed < cell.made {
            let kind = cell.mark.rsplit(' ').next().unwrap_or_default().to_owned();
            cell.mark = format!("{}/{} {kind}", cell.failed, cell.made);
        }
    }
}

impl Cell {
    fn nothing(column: Column) -> Self {
        Self { column, mark: "–".to_owned(), made: 0, failed: 0, why: String::new() }
    }
}

/// As the catalogue of faults writes them.
fn mark(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Refused => "✗r",
        FailureClass::Silence | FailureClass::TooBig => "✗t",
        FailureClass::Unreachable => "✗n",
        _ => "✗",
    }
}

impl Column {
    /// In a sentence.
    pub fn words(self) -> String {
        self.title().join(" ").trim_end().to_owned()
    }

    /// Over its column of the table.
    pub fn title(self) -> [&'static str; 2] {
        match self {
            Self::VipSameNode => ["pod→VIP", "same node"],
            Self::VipOtherNode => ["pod→VIP", "cross node"],
            Self::PodSameNode => ["pod→pod IP", "same"],
            Self::PodOtherNode => ["pod→pod IP", "cross"],
            Self::NodeToNode => ["node→node", ""],
            Self::SelfVip => ["self", "VIP"],
            Self::Name => ["DNS", "name"],
            Self::BigPackets => ["big", "packets"],
        }
    }
}
