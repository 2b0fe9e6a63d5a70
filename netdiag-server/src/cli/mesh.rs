//! `netdiag probe mesh`: every node to every other, or to those whose turn it is, as findings and as a heat map.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::output::{self, Progress, Reader};
use super::probe::OwnRights;
use super::request;
use super::screen::Screen;
use super::source::{self, Forwarded, Route, SourceArgs};
use super::{EXIT_CAUSE, EXIT_HEALTHY, EXIT_UNEXPLAINED, Failure, stop};
use crate::answer::mesh::{self, MeshAnswer, MeshStatus};
use crate::ask::{AnySource, LiveSource, Source};
use crate::kube::forward::ForwardError;
use crate::mesh::rounds::{self, Rounds};
use crate::mesh::{Kind, MAX_USER_TARGETS, ProbeTarget, Settings, Slo, UserTarget, target};
use crate::probe::Rights as _;

/// A round by itself takes 6 s, and agents that do not answer some more.
const PATIENCE_MS: u64 = 15_000;
/// Between two looks at a server's mesh.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// Where nothing may be probed for the question.
const NO_MESH: &str = "this server keeps no mesh: it does when it is started with `netdiag serve --mesh`";
/// A target of 1 is kept by a mesh that loses everything.
const PERCENT: f64 = 100.0;

/// Probes nodes from each other, DNS replicas, the API and named targets: a heat map, and what breaks its target
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on, and show what the last minutes were like
    #[arg(short, long)]
    watch: bool,
    /// JSON with --watch is one line for each look
    #[arg(short, long, value_enum, default_value = "text")]
    output: MapFormat,
    /// What the heat map shows; findings and JSON are about all
    #[arg(long, value_enum, default_value = "tcp")]
    map: MapKind,
    #[command(flatten)]
    wanted: Wanted,
    #[command(flatten)]
    source: SourceArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum MapFormat {
    Text,
    Json,
    Svg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum MapKind {
    Tcp,
    Icmp,
}

impl From<MapKind> for Kind {
    fn from(kind: MapKind) -> Self {
        match kind {
            MapKind::Tcp => Self::Tcp,
            MapKind::Icmp => Self::Icmp,
        }
    }
}

/// What is probed besides nodes, and what has to be kept.
#[derive(Debug, Clone, clap::Args)]
struct Wanted {
    /// Probe this by TCP from every node, too; up to 16 times
    #[arg(long, value_name = "NAME=ADDRESS:PORT")]
    mesh_target: Vec<UserTarget>,
    /// Probe what this file lists, too: tcp, tls, icmp, http, https and dns, as YAML `targets:`
    #[arg(long, value_name = "FILE")]
    mesh_targets: Option<PathBuf>,
    /// Share of attempts that may fail; else what the server's mesh has to keep, or 0.1
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    loss_target: Option<f64>,
    /// What 99 of 100 answers must keep; else what the server's mesh has to keep, or 100ms
    #[arg(long, value_name = "TIME", value_parser = request::parse_timeout)]
    p99_target: Option<u64>,
}

/// `netdiag serve --mesh`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ServedMesh {
    /// Let the agents probe each other all the time
    #[arg(long)]
    mesh: bool,
    /// Serve Prometheus metrics of the mesh here, without authentication
    #[arg(long, value_name = "ADDRESS", requires = "mesh")]
    pub metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    wanted: Wanted,
}

impl ServedMesh {
    /// Keeps a mesh going for as long as the process runs, when one is wanted.
    pub fn start(&self, source: &Arc<LiveSource>) -> Result<Option<Arc<Rounds>>, Failure> {
        // A file that is wrong is told also where no mesh is kept yet: the manifests have one.
        let settings = self.wanted.request()?.settings(source.agent_port())?;
        match (self.mesh, self.wanted.mesh_target.is_empty()) {
            (true, _) => {}
            (false, true) => return Ok(None),
            (false, false) => return Err(Failure("--mesh-target is for a mesh: add --mesh".to_owned())),
        }
        let mesh = Arc::new(Rounds::new(settings));
        rounds::start(source.clone(), mesh.clone());
        Ok(Some(mesh))
    }
}

impl Wanted {
    fn request(&self) -> Result<MeshRequest, Failure> {
        Ok(MeshRequest {
            loss: self.loss_target.map(|percent| percent / PERCENT),
            p99_us: self.p99_target.map(|ms| ms.saturating_mul(1_000)),
            targets: self.mesh_target.iter().map(ToString::to_string).collect(),
            entries: self.entries()?,
            only_kept: false,
        })
    }

    fn entries(&self) -> Result<Vec<ProbeTarget>, Failure> {
        let Some(path) = &self.mesh_targets else { return Ok(Vec::new()) };
        #[expect(clippy::disallowed_methods, reason = "a file that the user names")]
        let read = std::fs::read_to_string(path);
        let text = read.map_err(|error| Failure(format!("cannot read {}: {error}", path.display())))?;
        target::parse(&text).map_err(|why| Failure(format!("{}: {why}", path.display())))
    }
}

/// `POST /v1/mesh`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MeshRequest {
    /// Share of attempts that may fail, 0 to 1; the server's own target of service when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// What 99 of 100 answers must keep, in microseconds; the server's own when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
    /// `NAME=ADDRESS:PORT`, as for `netdiag serve --mesh-target`; only when the server keeps no mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// As a file of targets has them; only when the server keeps no mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<ProbeTarget>,
    /// Probe nothing when the server keeps no mesh: for who may look, and may not probe.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_kept: bool,
}

impl MeshRequest {
    fn settings(&self, agent_port: u16) -> Result<Settings, Failure> {
        let found = self.targets.len() + self.entries.len();
        if found > MAX_USER_TARGETS {
            return Err(Failure(format!(
                "{found} targets, {MAX_USER_TARGETS} are the limit: name the most important ones"
            )));
        }
        let targets = self.targets.iter().map(|text| text.parse::<UserTarget>());
        let mut targets: Vec<UserTarget> = targets.collect::<Result<_, _>>().map_err(Failure)?;
        for entry in &self.entries {
            targets.push(entry.check().map_err(|why| Failure(format!("target {:?}: {why}", entry.name)))?);
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = targets.iter().find(|target| !names.insert(&target.name)) {
            return Err(Failure(format!("two targets are named {}: give each a name of its own", twice.name)));
        }
        let slo = self.slo(Slo::default());
        if !(0.0..=1.0).contains(&slo.loss) {
            return Err(Failure(format!("a share of {} cannot be lost, use 0 to 1", slo.loss)));
        }
        Ok(Settings { targets, agent_port, slo })
    }

    fn slo(&self, usual: Slo) -> Slo {
        Slo { loss: self.loss.unwrap_or(usual.loss), p99_us: self.p99_us.unwrap_or(usual.p99_us) }
    }
}

pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let mut request = args.wanted.request()?;
    // Wrong usage is told before anybody is asked.
    request.settings(args.source.agent_port)?;
    if args.watch && args.output == MapFormat::Svg {
        return Err(Failure("an SVG is one picture: leave out --watch".to_owned()));
    }
    let way = source::route(&args.source).await?;
    // Probing from nodes takes the right in all namespaces; what a server's mesh has seen may be looked at without it.
    let right = OwnRights::of(&args.source).await?.may_start("").await;
    if let Err(denied) = right {
        if matches!(way, Route::Here(_)) {
            return Err(Failure(denied.to_string()));
        }
        eprintln!("netdiag: {denied}: asking for what the server's own mesh has seen");
        request.only_kept = true;
    }
    if args.watch {
        let code = watch(&args, &request, &way).await;
        if let Route::Server(way) = &way {
            way.server.withdraw().await;
        }
        return code;
    }
    let answer = {
        let _progress = Progress::start("nodes probe each other");
        match way {
            Route::Server(way) => {
                let answer = stop::unless_told(ask(&way, &request), ForwardError::Refused).await;
                way.server.withdraw().await;
                match answer {
                    Ok(answer) => answer,
                    Err(error) => {
                        let source = way.without(error)?;
                        let asking = here(&source, args.source.agent_port, &request);
                        stop::unless_told(Box::pin(asking), Failure).await?
                    }
                }
            }
            Route::Here(source) => here(&source, args.source.agent_port, &request).await?,
        }
    };
    show(&answer, &args, None)?;
    Ok(exit_code(&answer))
}

async fn here(source: &AnySource, agent_port: u16, request: &MeshRequest) -> Result<MeshAnswer, Failure> {
    mesh_with(source, agent_port, None, request).await
}

/// What the server's own mesh has seen takes no right. Without one a round is sent, with a proof of who asks.
async fn ask(way: &Forwarded, request: &MeshRequest) -> Result<MeshAnswer, ForwardError> {
    let patience = request::patience(PATIENCE_MS);
    if request.only_kept || (request.targets.is_empty() && request.entries.is_empty()) {
        let kept = MeshRequest { only_kept: true, ..request.clone() };
        let answer = way.server.post("/v1/mesh", &kept, patience).await;
        if request.only_kept || !matches!(answer, Err(ForwardError::Refused(_))) {
            return answer;
        }
    }
    way.server.post_proven("/v1/mesh", request, patience).await
}

/// For the command line and the server alike: what the mesh that is `kept` knows, or else one short round.
pub(super) async fn mesh_with<S: Source>(
    source: &S,
    agent_port: u16,
    kept: Option<&Rounds>,
    request: &MeshRequest,
) -> Result<MeshAnswer, Failure> {
    let settings = request.settings(agent_port)?;
    let Some(kept) = kept else {
        if request.only_kept {
            return Err(Failure(NO_MESH.to_owned()));
        }
        let rounds = Rounds::new(settings);
        rounds.once(source).await?;
        return Ok(mesh::build(&rounds.look(), source.now()));
    };
    if !settings.targets.is_empty() {
        let why = "this server keeps a mesh, whose targets are given to it: netdiag serve --mesh-targets FILE";
        return Err(Failure(why.to_owned()));
    }
    let mut look = kept.look();
    look.settings.slo = request.slo(look.settings.slo);
    Ok(mesh::build(&look, source.now()))
}

/// Until somebody ends it. Without a server this process keeps the mesh going.
async fn watch(args: &Args, request: &MeshRequest, way: &Route) -> Result<u8, Failure> {
    let stop = |kind| signal(kind).map_err(|error| Failure(format!("cannot wait for signals: {error}")));
    let (mut terminate, mut interrupt) = (stop(SignalKind::terminate())?, stop(SignalKind::interrupt())?);
    let own = Rounds::new(request.settings(args.source.agent_port)?);
    let mut ticks = if matches!(way, Route::Server(_)) { tokio::time::interval(WATCH_EVERY) } else { Rounds::ticks() };
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut screen = (args.output == MapFormat::Text).then(Screen::enter).flatten();
    let mut last = None;
    loop {
        let look = async {
            ticks.tick().await;
            match way {
                Route::Server(way) => ask(way, request).await.map_err(|error| match error {
                    ForwardError::Refused(why) => Failure(why),
                    ForwardError::Unreached(why) => Failure(format!("no server to ask: {why}")),
                }),
                Route::Here(source) => {
                    own.step(source).await?;
                    Ok(mesh::build(&own.look(), source.now()))
                }
            }
        };
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            look = look => match (look, &mut screen, &last) {
                (Ok(answer), ..) => {
                    if show(&answer, args, screen.as_mut())? == Reader::Gone {
                        break;
                    }
                    last = Some(answer);
                }
                (Err(failure), _, None) => return Err(failure),
                // One look that failed is no reason to stop watching; the next may be answered.
                (Err(Failure(why)), Some(screen), _) => screen.remark(&why),
                (Err(Failure(why)), None, _) => eprintln!("netdiag: {why}"),
            },
        }
    }
    if let (Some(screen), Some(answer)) = (screen, &last) {
        // What was last seen stays readable.
        screen.leave();
        show(answer, args, None)?;
    }
    Ok(last.as_ref().map_or(EXIT_UNEXPLAINED, exit_code))
}

fn show(answer: &MeshAnswer, args: &Args, screen: Option<&mut Screen>) -> Result<Reader, Failure> {
    let kind = Kind::from(args.map);
    match (args.output, screen) {
        (MapFormat::Text, Some(screen)) => {
            screen.draw(|_| answer.text(output::paint(), kind));
            Ok(Reader::There)
        }
        (MapFormat::Text, None) => output::print_to_reader(&answer.text(output::paint(), kind)),
        (MapFormat::Svg, _) => output::print_to_reader(&answer.svg(kind)),
        (MapFormat::Json, _) if args.watch => output::print_to_reader(&output::json_line(answer)?),
        (MapFormat::Json, _) => output::print_to_reader(&output::json(answer)?),
    }
}

fn exit_code(answer: &MeshAnswer) -> u8 {
    match answer.status {
        MeshStatus::Good => EXIT_HEALTHY,
        MeshStatus::Breaks => EXIT_CAUSE,
        MeshStatus::Unknown => EXIT_UNEXPLAINED,
    }
}

/// `0.1`, `0.1%`: 0 to 100.
fn parse_percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').trim().parse::<f64>() {
        Ok(percent) if (0.0..=PERCENT).contains(&percent) => Ok(percent),
        _ => Err("use a share in percent, 0 to 100, such as 0.1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_in_percent() {
        assert_eq!(parse_percent("0.1"), Ok(0.1));
        assert_eq!(parse_percent("5%"), Ok(5.0));
        for wrong in ["", "-1", "101", "x", "NaN"] {
            assert!(parse_percent(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_a_mesh_is_refused() {
        let refused = |request: MeshRequest| request.settings(9443).map(|_| ()).unwrap_err().0;
        let targets = (0..=MAX_USER_TARGETS).map(|n| format!("t{n}=10.0.0.1:80")).collect();
        assert!(refused(MeshRequest { targets, ..MeshRequest::default() }).starts_with("17 targets, 16 are the limit"));
        assert!(refused(MeshRequest { loss: Some(1.5), ..MeshRequest::default() }).contains("use 0 to 1"));
        for (targets, says) in [
            (&["web"][..], "NAME=ADDRESS:PORT"),
            (&["web=10.0.0.1:80", "web=10.0.0.2:80"], "two targets are named web"),
        ] {
            let targets = targets.iter().map(|target| (*target).to_owned()).collect();
            let said = refused(MeshRequest { targets, ..MeshRequest::default() });
            assert!(said.contains(says), "{said}");
        }
    }

    #[test]
    fn entries_of_a_file_stand_beside_targets_of_the_command_line() {
        let text = "targets: [{name: web, kind: http, to: 'http://10.0.0.1/', interval: 4s}]";
        let entries = target::parse(text).unwrap();
        let request = |name: &str| MeshRequest {
            targets: vec![format!("{name}=10.0.0.1:80")],
            entries: entries.clone(),
            ..MeshRequest::default()
        };
        let sent = serde_json::to_string(&request("tcp")).unwrap();
        let settings = serde_json::from_str::<MeshRequest>(&sent).unwrap().settings(9443).unwrap();
        let found: Vec<(&str, u32)> = settings.targets.iter().map(|target| (&*target.name, target.every)).collect();
        assert_eq!(found, [("tcp", 1), ("web", 2)]);
        assert!(request("web").settings(9443).unwrap_err().0.contains("two targets are named web"));
    }

    #[test]
    fn what_is_not_asked_for_is_the_servers_own() {
        let own = Slo { loss: 0.05, p99_us: 7_000 };
        assert_eq!(MeshRequest::default().slo(own), own);
        let asked = MeshRequest { p99_us: Some(900), ..MeshRequest::default() };
        assert_eq!(asked.slo(own), Slo { loss: 0.05, p99_us: 900 });
    }
}
