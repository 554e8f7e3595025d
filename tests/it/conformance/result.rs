//! The result as programs get it.

use jsonschema::Validator;

use crate::harness::{Place, by_libvirt_too, on_every_tier, result_of};

on_every_tier! {
    every_kind_of_result_is_valid_by_the_published_schema
    a_result_tells_what_the_job_was_and_where_it_ran
    two_jobs_never_have_one_generation
    one_job_makes_one_sandbox
}

by_libvirt_too! {
    two_jobs_never_have_one_generation
}

fn every_kind_of_result_is_valid_by_the_published_schema(place: &Place) {
    let schema = place.node.mayfly(["schema", "result"]).finish().code(0).json();
    let schema: Validator = jsonschema::validator_for(&schema).unwrap();
    let jobs = [
        (place.shell("echo out; echo err >&2; exit 3"), 3, "failed"),
        (place.run(["true"]), 0, "succeeded"),
        (place.run(["no-such-program"]), 127, "failed"),
        (
            place.run(["sleep", "60"]).args(["--timeout", "300ms", "--get", "/job/nothing:/dev/null"]),
            124,
            "timed_out",
        ),
        (place.run(["yes"]).args(["--output", "1kB"]), 137, "output_limit"),
        (place.run(["true"]).args(["--memory", "1kB"]), 125, "rejected"),
        (place.run_in("no-such-image", ["true"]), 125, "rejected"),
    ];
    for (job, code, outcome) in jobs {
        let result = result_of(job, code);
        assert_eq!(result["outcome"], outcome);
        let faults: Vec<_> = schema.iter_errors(&result).map(|fault| fault.to_string()).collect();
        assert!(faults.is_empty(), "{outcome}: {faults:?}");
    }
    // A schema that everything passes would say nothing.
    assert!(!schema.is_valid(&serde_json::json!({ "schema_version": 1 })));
}

fn a_result_tells_what_the_job_was_and_where_it_ran(place: &Place) {
    let result = result_of(place.shell("echo hello; : | cat"), 0);
    assert_eq!(result["tier"], place.tier.name());
    assert!(result["image"].as_str().unwrap().starts_with("minimal@sha256:"));
    assert_eq!(result["generation"].as_str().unwrap().len(), 32);
    assert_eq!(result["source"], "cold");
    assert_eq!((result["attempt"].as_u64(), result["tenant"].as_str()), (Some(1), Some("local")));
    for phase in ["checkout_us", "run_us", "clean_us"] {
        assert!(result["phases"][phase].as_u64() > Some(0), "{phase}");
    }
    for used in ["cpu_us", "peak_memory_bytes", "max_rss_bytes"] {
        assert!(result["usage"][used].as_u64() > Some(0), "{used}");
    }
}

fn two_jobs_never_have_one_generation(place: &Place) {
    let [one, two] = [0, 1].map(|_| result_of(place.run(["true"]), 0)["generation"].clone());
    assert_ne!(one, two);
    for generation in [one, two] {
        let ledger = place.node.ledger();
        let life = ledger.iter().filter(|record| record["generation"] == generation);
        let events: Vec<_> = life.map(|record| record["event"].as_str().unwrap()).collect();
        assert_eq!(
            events,
            ["clean", "consumed", "ended"],
            "each life is on record, used once, before its end"
        );
    }
}

fn one_job_makes_one_sandbox(place: &Place) {
    place.run(["true"]).finish().code(0);
    let ledger = place.node.ledger();
    let made = ledger.iter().filter(|record| record["event"] == "clean").count();
    assert_eq!(made, 1, "nobody is to come for another one");
}
