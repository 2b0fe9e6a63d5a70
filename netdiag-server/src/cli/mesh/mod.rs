//! `netdiag probe mesh`: every node to every other, or to those whose turn it is, as findings and as a heat map.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

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
use crate::mesh::Kind;
use crate::mesh::rounds::{self, Rounds};
use crate::probe::Rights as _;

mod settings;

pub(super) use settings::MeshRequest;
use settings::Wanted;

/// A round by itself takes 6 s, or 10 s with the longest timeout of a target, and agents that do not answer some more.
const PATIENCE_MS: u64 = 15_000;
/// Between two looks at a server's mesh.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// Where nothing may be probed for the question.
const NO_MESH: &str = "this server keeps no mesh: it does when it is started with `netdiag serve --mesh`";

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
