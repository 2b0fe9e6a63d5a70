//! What tests of the binary share: running it, reading its answer, and the fixtures' small world as a bundle.
#![allow(dead_code, reason = "each test program uses a part")]
#![expect(clippy::disallowed_methods, reason = "tests read the files they check")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A bundle of the fixtures' small world in a directory of its own.
pub struct Bundle {
    directory: tempfile::TempDir,
}

impl Bundle {
    pub fn new() -> Self {
        let bundle = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        bundle.write("objects/world.yaml", &format!("kind: List\nitems:\n{}", world()));
        for kind in ["networkpolicies", "events"] {
            bundle.write(&format!("objects/{kind}.yaml"), "apiVersion: v1\nitems: []\nkind: List\n");
        }
        bundle
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, text).expect("a file of the bundle");
    }

    /// Changes the first place in the world's objects that reads like this.
    pub fn change(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path().join("objects/world.yaml")).expect("the world");
        assert!(text.contains(from), "the world has {from}");
        self.write("objects/world.yaml", &text.replacen(from, to, 1));
    }

    pub fn diagnose(&self, arguments: &[&str]) -> Output {
        let path = self.path();
        let bundle = ["diagnose", "--bundle", path.to_str().expect("UTF-8")];
        netdiag(&[&bundle, arguments].concat())
    }
}

/// The items of the world's objects, as YAML.
fn world() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/world.yaml");
    let world = std::fs::read_to_string(path).expect("the fixtures' world");
    let objects = world.split("objects:\n").nth(1).and_then(|rest| rest.split("readings:\n").next());
    objects.expect("its objects").to_owned()
}

/// The world's objects as the API would hold them.
pub fn world_objects() -> Vec<Value> {
    serde_saphyr::from_str(&world()).expect("a list of objects")
}

/// Runs netdiag with nothing of this machine's configuration.
pub fn netdiag(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netdiag"))
        .args(arguments)
        .env_remove("KUBECONFIG")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env("HOME", "/nonexistent")
        .output()
        .expect("netdiag runs")
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by a signal: {output:?}"))
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// `what; why; remedy` of everything an answer did not see.
pub fn not_seen(answer: &Value) -> Vec<String> {
    let text = |gap: &Value, key: &str| gap[key].as_str().unwrap_or_default().to_owned();
    let gaps = answer["not_seen"].as_array().expect("a list");
    gaps.iter().map(|gap| format!("{}; {}; {}", text(gap, "what"), text(gap, "why"), text(gap, "remedy"))).collect()
}
