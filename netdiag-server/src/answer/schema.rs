//! JSON Schemas of everything netdiag prints as JSON, as checked in under `schema/`.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::Answer;
use super::drift::DriftAnswer;
use super::mesh::MeshAnswer;
use super::observe::Observe;
use super::probe::ProbeAnswer;
use super::scan::Scan;
use super::status::Status;
use super::trace::TraceAnswer;

/// File name under `schema/` and the schema itself.
pub fn all() -> [(&'static str, Value); 8] {
    [
        ("answer.v1.json", of::<Answer>("netdiag.answer/v1")),
        ("drift.v1.json", of::<DriftAnswer>("netdiag.drift/v1")),
        ("mesh.v1.json", of::<MeshAnswer>("netdiag.mesh/v1")),
        ("observe.v1.json", of::<Observe>("netdiag.observe/v1")),
        ("probe.v1.json", of::<ProbeAnswer>("netdiag.probe/v1")),
        ("scan.v1.json", of::<Scan>("netdiag.scan/v1")),
        ("status.v1.json", of::<Status>("netdiag.status/v1")),
        ("trace.v1.json", of::<TraceAnswer>("netdiag.trace/v1")),
    ]
}

/// Draft 2020-12 without references: some MCP clients do not follow them.
pub fn of<T: JsonSchema>(title: &str) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), title.into());
    schema.to_value()
}
