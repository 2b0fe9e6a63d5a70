//! `netdiag observe`: what the kernels of the cluster see, live.

use std::sync::Arc;
use std::time::{Duration, Instant};

use netdiag_common::Window;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::{self, Reader, ShortFormat};
use super::request;
use super::screen::Screen;
use super::source::{self, Forwarded, Route, SourceArgs};
use super::{EXIT_HEALTHY, EXIT_UNEXPLAINED, Failure, stop};
use crate::answer::observe::Observe;
use crate::ask::{self, AnySource, Source};
use crate::evidence::Cluster;
use crate::kube::forward::ForwardError;
use crate::observed::{Subject, Wanted};

/// How long the server may take for one look, in milliseconds.
const PATIENCE_MS: u64 = 3_000;
/// Without a server, objects are listed anew after this long: names change slower than counters, and lists cost the API.
const NAMES_LAST: Duration = Duration::from_secs(15);
/// Asking more often than this shows nothing new and costs every node.
const FASTEST_MS: u64 = 500;

/// Shows live what the kernels see: drops, refusals, connections, DNS, by pod
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to watch; without it, what goes wrong of all of them
    #[arg(value_enum)]
    subject: Option<Subject>,
    /// Only this pod, on its own node
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "", hide_default_value = true)]
    pod: String,
    /// Only pods and Services of this namespace
    #[arg(short, long, value_name = "NAME", default_value = "", hide_default_value = true)]
    namespace: String,
    /// Only connections to this Service and its endpoints
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "", hide_default_value = true)]
    service: String,
    /// Only this node
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    node: String,
    /// Only reasons, results or names with this text in them
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// How far back counts go: 10s, 1m, 5m or 1h
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_window)]
    window: Window,
    /// Time between two looks
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = request::parse_timeout)]
    interval: u64,
    /// Look once
    #[arg(long)]
    once: bool,
    /// Show also what is dropped where nothing is wrong
    #[arg(long)]
    all: bool,
    /// JSON is one line for each look
    #[arg(short, long, value_enum, default_value = "text")]
    output: ShortFormat,
    #[command(flatten)]
    source: SourceArgs,
}

pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let wanted = Wanted {
        subject: args.subject,
        window: args.window,
        all: args.all,
        pod: args.pod.clone(),
        namespace: args.namespace.clone(),
        service: args.service.clone(),
        node: args.node.clone(),
        reason: args.reason.clone(),
    };
    let mut looker = match source::route(&args.source).await? {
        Route::Server(way) => Looker::Server(way),
        Route::Here(source) => Looker::here(source),
    };
    let code = watch(&args, &wanted, &mut looker).await;
    if let Looker::Server(way) = &looker {
        way.server.withdraw().await;
    }
    code
}

async fn watch(args: &Args, wanted: &Wanted, looker: &mut Looker) -> Result<u8, Failure> {
    let mut last = stop::unless_told(Box::pin(looker.look(wanted)), Failure).await?;
    // What was recorded does not change.
    if args.once || looker.is_recorded() {
        show(&last, args.output, None)?;
        return Ok(if last.is_complete() { EXIT_HEALTHY } else { EXIT_UNEXPLAINED });
    }
    let mut screen = (args.output == ShortFormat::Text).then(Screen::enter).flatten();
    let mut ticks = tokio::time::interval(Duration::from_millis(args.interval.max(FASTEST_MS)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut terminate = stop_signal(SignalKind::terminate())?;
    let mut interrupt = stop_signal(SignalKind::interrupt())?;
    while show(&last, args.output, screen.as_mut())? == Reader::There {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            look = async {
                ticks.tick().await;
                looker.look(wanted).await
            } => match (look, &mut screen) {
                (Ok(look), _) => last = look,
                // One look that failed is no reason to stop watching; the next may be answered.
                (Err(Failure(why)), Some(screen)) => screen.remark(&why),
                (Err(Failure(why)), None) => eprintln!("netdiag: {why}"),
            },
        }
    }
    if let Some(screen) = screen {
        // What was last seen stays readable.
        screen.leave();
        show(&last, args.output, None)?;
    }
    Ok(EXIT_HEALTHY)
}

fn stop_signal(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure(format!("cannot wait for signals: {error}")))
}

fn show(look: &Observe, format: ShortFormat, screen: Option<&mut Screen>) -> Result<Reader, Failure> {
    match (format, screen) {
        (ShortFormat::Json, _) => output::print_to_reader(&output::json_line(look)?),
        (ShortFormat::Text, Some(screen)) => {
            screen.draw(|size| look.text(output::paint(), size));
            Ok(Reader::There)
        }
        (ShortFormat::Text, None) => output::print_to_reader(&look.text(output::paint(), Screen::unlimited())),
    }
}

fn parse_window(text: &str) -> Result<Window, String> {
    let known = Window::ALL.into_iter().find(|window| window.to_string() == text);
    known.ok_or_else(|| format!("use one of {}", Window::ALL.map(|window| window.to_string()).join(", ")))
}

/// Who is asked, look for look.
enum Looker {
    Server(Box<Forwarded>),
    Here { source: Box<AnySource>, names: Option<(Arc<Cluster>, Instant)> },
}

impl Looker {
    fn here(source: AnySource) -> Self {
        Self::Here { source: Box::new(source), names: None }
    }

    fn is_recorded(&self) -> bool {
        matches!(self, Self::Here { source, .. } if !source.is_live())
    }

    async fn look(&mut self, wanted: &Wanted) -> Result<Observe, Failure> {
        match self {
            Self::Server(way) => {
                let answer = way.server.post("/v1/observe", wanted, request::patience(PATIENCE_MS)).await;
                answer.map_err(|error| match error {
                    ForwardError::Refused(why) => Failure(why),
                    ForwardError::Unreached(why) => Failure(format!("no server to ask: {why}")),
                })
            }
            Self::Here { source, names } => {
                let cluster = match names {
                    Some((cluster, at)) if at.elapsed() < NAMES_LAST => cluster.clone(),
                    _ => {
                        let cluster = source.cluster().await?;
                        *names = Some((cluster.clone(), Instant::now()));
                        cluster
                    }
                };
                Ok(ask::observe(&**source, cluster, wanted).await?)
            }
        }
    }
}
