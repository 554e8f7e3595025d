//! The prober: runs inside a sandbox as an ordinary job, and says for each probe what it saw.
//!
//! It asks whether things are visible, writable or limited, and holds no exploit: a call is made with arguments that
//! do nothing where it gets through, a file is opened and not written, and what is used up is used up to a bound that it
//! is told. The same program runs without protection as the control, so it decides nothing: it says `held`, `open` or
//! `unknown`, and what it saw. What that means for a tier is decided outside.
//!
//! ```text
//! mayfly-prober [KEY=VALUE]... PROBE...    one line each: PROBE <tab> held|open|unknown <tab> what was seen
//! mayfly-prober role=ROLE [KEY=VALUE]...   does what the host is to look at
//! ```

mod calls;
mod checks;
mod clues;
mod files;
mod information;
mod neighbours;
mod network;
mod privilege;
mod resources;
mod roles;

use std::{
    env,
    io::{Read, Write},
    process::ExitCode,
};

use checks::Checks;
use clues::Clues;

/// A probe's look.
type Look = fn(&Clues, &mut Checks);

/// By their ids in the catalogue.
const LOOKS: &[(&str, Look)] = &[
    ("P01", privilege::root_is_nobody_outside),
    ("P02", privilege::no_capability),
    ("P03", privilege::no_new_privileges),
    ("P04", privilege::calls_are_filtered),
    ("P05", calls::no_new_user_namespace),
    ("P06", calls::no_mounting),
    ("P07", calls::no_keyrings),
    ("P08", calls::no_kernel_doors),
    ("P09", calls::no_file_handles),
    ("P10", calls::no_tracing),
    ("P11", privilege::labelled),
    ("F01", files::canary_is_out_of_reach),
    ("F02", files::no_second_chroot),
    ("F03", files::no_foreign_descriptor),
    ("F04", files::working_directory_is_inside),
    ("F05", files::only_scratch_is_writable),
    ("F06", files::scratch_gives_no_rights),
    ("F07", files::kernel_files_are_masked),
    ("F08", files::kernel_settings_are_closed),
    ("F09", files::cgroups_are_closed),
    ("F10", files::few_devices),
    ("F11", files::no_socket_of_the_host),
    ("F12", files::no_bind_can_be_written),
    ("I01", information::no_kernel_log),
    ("I02", information::only_own_processes),
    ("I03", information::empty_environment),
    ("I05", information::host_figures),
    ("I06", information::no_nested_machines),
    ("X01", neighbours::no_shared_scratch),
    ("X02", neighbours::no_shared_ipc),
    ("X03", neighbours::no_shared_names),
    ("X04", neighbours::no_former_life),
    ("X06", information::cached_pages),
    ("X08", neighbours::scratch_is_empty),
    ("N01", network::loopback_only),
    ("N02", network::no_metadata),
    ("N03", network::no_host_service),
    ("N04", network::no_names),
    ("N05", network::no_odd_sockets),
    ("N06", network::no_frames),
    ("N07", network::no_neighbour),
    ("N09", network::no_flood),
    ("R01", resources::processes),
    ("R02", resources::memory),
    ("R03", resources::scratch_space),
    ("R04", resources::disk),
    ("R05", resources::inodes),
    ("R06", resources::descriptors),
    ("R07", resources::cpu),
    ("R10", resources::core_dumps),
    ("R11", resources::namespaces),
    ("C02", privilege::no_terminal),
];

fn main() -> ExitCode {
    let (clues, probes) = Clues::parse(env::args().skip(1));
    match clues.get("role") {
        None => {}
        Some("leave") => return neighbours::leave_and_wait(&clues),
        Some("flood") => return roles::flood(&clues),
        Some("stay") => return roles::stay(),
        Some("files") => return roles::leave_files(&clues),
        Some("door") => return roles::ask_the_door(&clues),
        Some(role) => {
            let _ = writeln!(std::io::stderr(), "no role is called {role}");
            return ExitCode::FAILURE;
        }
    }
    if clues.get("wait").is_some() {
        let _ = std::io::stdout().write_all(b"waiting\n");
        let _ = std::io::stdin().read(&mut [0; 1]);
    }
    let mut out = std::io::stdout().lock();
    for probe in probes {
        let Some((_, look)) = LOOKS.iter().find(|(id, _)| *id == probe) else {
            let _ = writeln!(std::io::stderr(), "no probe is called {probe}");
            return ExitCode::FAILURE;
        };
        let mut checks = Checks::default();
        look(&clues, &mut checks);
        if writeln!(out, "{probe}\t{checks}").is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
