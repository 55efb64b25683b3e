//! The JSON Schema of every document, made from the types that print them.
//!
//! `SNAPSHOTS=overwrite cargo test --lib cli::schema` writes `docs/reference/documents.schema.json` anew.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use super::document::{Document, Failed, Frame, SCHEMA};
use crate::error::Cause;
use crate::explain::Explanation;
use crate::plan::PlanDocument;
use crate::report::compare::Comparison;
use crate::saliency::Report;

fn generator() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.for_serialize().into_generator()
}

/// The schema of a type, said to be that of a command's document.
fn of<T: JsonSchema>(title: &str, command: Value) -> Value {
    let mut schema = generator().into_root_schema_for::<T>().to_value();
    let own = schema.as_object_mut().unwrap();
    own.remove("$schema");
    own.insert("title".into(), title.into());
    schema["properties"]["schema"] = json!({ "const": SCHEMA });
    schema["properties"]["command"] = command;
    schema
}

fn document<T: Document + JsonSchema>() -> Value {
    of::<Frame<T>>(&format!("merganser {} --json", T::COMMAND), json!({ "const": T::COMMAND }))
}

/// A report's file: the document without what differs from run to run.
fn report() -> Value {
    let mut schema = of::<Report>("merganser saliency RECIPE -o FILE.json", json!({ "const": "saliency" }));
    schema["properties"]["out"] = false.into();
    schema
}

fn all() -> Value {
    let compared = <&Comparison as Document>::COMMAND;
    let mut failure = of::<Frame<Failed>>("a failure", json!({ "type": ["string", "null"] }));
    let kinds: Vec<&str> = Cause::ALL.iter().map(|cause| cause.name()).collect();
    failure["properties"]["error"]["properties"]["kind"] = json!({ "enum": kinds });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What merganser prints with --json, and the reports of merganser saliency",
        "oneOf": [
            document::<super::merge::MergeDocument>(),
            of::<Frame<super::part::PartDocument>>("merganser merge --part --json", json!({ "const": "merge" })),
            document::<super::extract::ExtractDocument>(),
            of::<Frame<super::extract::AdapterDocument>>(
                "merganser extract --lora --json",
                json!({ "const": super::extract::AdapterDocument::COMMAND }),
            ),
            document::<PlanDocument>(),
            document::<Explanation>(),
            document::<super::saliency::SaliencyDocument>(),
            document::<super::inspect::InspectDocument>(),
            of::<Frame<Comparison>>(&format!("merganser {compared} --json"), json!({ "const": compared })),
            document::<super::verify::VerifyDocument>(),
            document::<super::methods::MethodsDocument>(),
            document::<super::devices::DevicesDocument>(),
            document::<super::bench::BenchDocument>(),
            report(),
            failure,
        ],
    })
}

#[test]
fn the_committed_schema_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/documents.schema.json");
    let made = serde_json::to_string_pretty(&all()).unwrap() + "\n";
    snapbox::Assert::new()
        .action_env("SNAPSHOTS")
        .eq(snapbox::Data::text(made), snapbox::Data::read_from(&path, None).raw());
}
