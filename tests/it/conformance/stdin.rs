//! What a job reads.

use sha2::{Digest, Sha256};

use crate::harness::{Place, on_every_tier};

on_every_tier! {
    hundreds_of_megabytes_of_stdin_arrive_whole
    without_being_asked_for_stdin_is_empty
    a_job_that_does_not_read_its_stdin_ends_all_the_same
    a_job_that_reads_a_part_of_its_stdin_ends_with_its_own_code
}

fn hundreds_of_megabytes_of_stdin_arrive_whole(place: &Place) {
    // No two blocks alike, so that none can be lost, doubled or swapped unseen.
    let mut bytes = vec![0; 200 << 20];
    for (number, block) in bytes.chunks_exact_mut(8).enumerate() {
        block.copy_from_slice(&(number << 7 ^ 0x5555).to_le_bytes());
    }
    let expected = format!("{:x}", Sha256::digest(&bytes));
    let finished = place.run(["sha256sum"]).args(["--stdin"]).stdin(bytes).finish().code(0);
    assert_eq!(finished.text(), format!("{expected}  -"));
}

fn without_being_asked_for_stdin_is_empty(place: &Place) {
    let finished = place.run(["wc", "-c"]).stdin("not for the job").finish().code(0);
    assert_eq!(finished.text(), "0");
}

fn a_job_that_does_not_read_its_stdin_ends_all_the_same(place: &Place) {
    place.run(["true"]).args(["--stdin"]).stdin(vec![0; 10_000_000]).finish().code(0);
}

fn a_job_that_reads_a_part_of_its_stdin_ends_with_its_own_code(place: &Place) {
    let mayfly = place.shell("head -c 7; exec <&-; exit 6").args(["--stdin"]);
    assert_eq!(mayfly.stdin(b"1234567890".repeat(1_000_000)).finish().code(6).text(), "1234567");
}
