#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::symlink;

use super::tree::Tree;
use super::*;

/// The verdict of one check on a tree.
fn verdict(tree: &Tree, check: Check) -> Verdict {
    let Finding {
        verdict,
        found,
        fix,
    } = check(&Machine::new(tree.root()));
    assert!(!found.is_empty());
    assert_eq!(fix.is_empty(), verdict == Verdict::Ok, "{found}: {fix}");
    verdict
}

/// Files, a check, and its verdict after them; on one tree, in this order.
fn verdicts(name: &str, check: Check, steps: &[(&str, &str, Verdict)]) {
    let tree = Tree::new(name);
    for (file, text, expected) in steps {
        tree.write(file, text);
        assert_eq!(verdict(&tree, check), *expected, "{name}: {file} {text:?}");
    }
}

const CPU: &str = "sys/devices/system/cpu";

#[test]
fn a_limit_of_a_group_however_deep_is_named() {
    verdicts(
        "limits",
        cpu_limits,
        &[
            ("sys/fs/cgroup/cgroup.procs", "1", Verdict::Ok),
            ("sys/fs/cgroup/user/app/cpu.max", "max 100000", Verdict::Ok),
            (
                "sys/fs/cgroup/user/app/a/cpu.max",
                "50000 100000",
                Verdict::Advice,
            ),
        ],
    );
}

#[test]
fn autogroup_counts_where_no_control_group_shares_the_cpus() {
    const ENABLED: &str = "proc/sys/kernel/sched_autogroup_enabled";
    const CONTROLLERS: &str = "sys/fs/cgroup/cgroup.subtree_control";
    verdicts(
        "autogroup",
        autogroup,
        &[
            (ENABLED, "0", Verdict::Ok),
            (ENABLED, "1", Verdict::Advice),
            (CONTROLLERS, "cpuset memory", Verdict::Advice),
            (CONTROLLERS, "cpuset cpu memory", Verdict::Ok),
        ],
    );
}

#[test]
fn an_empty_tree_is_fatal_only_where_something_must_be_there() {
    let tree = Tree::new("empty");
    tree.write("proc/sys/kernel/osrelease", "6.12.0\n");
    let fatal: Vec<_> = rows(&Machine::new(tree.root()))
        .into_iter()
        .filter(|row| row.finding.verdict == Verdict::Fatal)
        .map(|row| row.check)
        .collect();
    assert_eq!(fatal, ["kernel", "BTF"]);
}

#[test]
fn a_kernel_needs_sched_ext_and_its_options() {
    verdicts(
        "kernel",
        kernel,
        &[
            ("proc/sys/kernel/osrelease", "6.12.0", Verdict::Fatal),
            ("sys/kernel/sched_ext/state", "disabled", Verdict::Ok),
        ],
    );
    let all = "CONFIG_SCHED_CLASS_EXT=y\nCONFIG_BPF_SYSCALL=y\nCONFIG_BPF_JIT=y\nCONFIG_DEBUG_INFO_BTF=y\n";
    let without = "# CONFIG_SCHED_CLASS_EXT is not set\nCONFIG_BPF_SYSCALL=y\n";
    verdicts(
        "config",
        kernel_config,
        &[
            ("proc/sys/kernel/osrelease", "6.16.1", Verdict::Ok),
            ("boot/config-6.16.1", without, Verdict::Fatal),
            ("boot/config-6.16.1", all, Verdict::Ok),
        ],
    );
}

#[test]
fn another_scheduler_is_fatal_and_our_own_is_not() {
    const STATE: &str = "sys/kernel/sched_ext/state";
    const NAME: &str = "sys/kernel/sched_ext/root/ops";
    verdicts(
        "loaded",
        loaded_scheduler,
        &[
            (STATE, "disabled", Verdict::Ok),
            (STATE, "enabled", Verdict::Fatal),
            (NAME, "lavd_1.0", Verdict::Fatal),
            (NAME, "metronome_0.1.0", Verdict::Ok),
        ],
    );
}

#[test]
fn bytes_that_are_no_btf_are_fatal() {
    verdicts(
        "btf",
        btf,
        &[("sys/kernel/btf/vmlinux", "nonsense", Verdict::Fatal)],
    );
}

/// CPUs 0 to 7 of one core each, as sysfs has them.
fn eight_cpus(tree: &Tree) {
    tree.write(&format!("{CPU}/possible"), "0-7");
    tree.write(&format!("{CPU}/online"), "0-7");
    for cpu in 0..8 {
        let topology = format!("{CPU}/cpu{cpu}/topology");
        tree.write(
            &format!("{topology}/thread_siblings_list"),
            &cpu.to_string(),
        );
        tree.write(&format!("{topology}/core_cpus_list"), &cpu.to_string());
        let cache = format!("{CPU}/cpu{cpu}/cache/index0");
        tree.write(&format!("{cache}/level"), "3");
        tree.write(&format!("{cache}/type"), "Unified");
        tree.write(&format!("{cache}/shared_cpu_list"), "0-7");
    }
}

#[test]
fn cpus_are_enough_or_only_one() {
    let tree = Tree::new("cpus");
    eight_cpus(&tree);
    assert_eq!(cpus(&Machine::new(tree.root())), Finding::ok("8 online"));
    tree.write(&format!("{CPU}/online"), "0-1");
    assert_eq!(cpus(&Machine::new(tree.root())), Finding::ok("2 online"));
    tree.write(&format!("{CPU}/online"), "0");
    assert_eq!(verdict(&tree, cpus), Verdict::Fatal);
}

#[test]
fn interrupts_count_if_they_go_to_the_schedulers_cpu() {
    let tree = Tree::new("interrupts");
    eight_cpus(&tree);
    tree.write("proc/irq/30/effective_affinity_list", "6");
    assert_eq!(verdict(&tree, interrupts), Verdict::Ok);
    tree.write("proc/irq/9/effective_affinity_list", "7");
    tree.write("proc/irq/31/effective_affinity_list", "7");
    let finding = interrupts(&Machine::new(tree.root()));
    assert_eq!(finding.verdict, Verdict::Advice);
    assert!(finding.found.ends_with(": 9 31"), "{finding:?}");
    tree.write(&format!("{CPU}/isolated"), "2");
    assert_eq!(verdict(&tree, interrupts), Verdict::Ok);
}

#[test]
fn a_cpu_without_a_tick_is_good_and_one_without_tasks_keeps_schedulers_out() {
    let (tickless, isolated) = (&format!("{CPU}/nohz_full"), &format!("{CPU}/isolated"));
    verdicts(
        "isolated",
        isolated_cpu,
        &[
            (isolated, "\n", Verdict::Advice),
            (tickless, "(null)\n", Verdict::Advice),
            (tickless, "3\n", Verdict::Ok),
            (isolated, "3\n", Verdict::Fatal),
        ],
    );
}

#[test]
fn too_few_open_files_are_fatal_only_if_the_limit_cannot_be_raised() {
    let limits =
        |soft, hard| format!("Limit  Soft  Hard  Units\nMax open files  {soft} {hard} files\n");
    verdicts(
        "files",
        open_files,
        &[
            ("proc/self/limits", &limits("16", "16"), Verdict::Fatal),
            ("proc/self/limits", &limits("16", "1024"), Verdict::Ok),
            (
                "proc/self/limits",
                &limits("1024", "unlimited"),
                Verdict::Ok,
            ),
        ],
    );
}

#[test]
fn memory_can_be_locked_by_capability_or_by_limit() {
    let limits =
        |limit| format!("Limit  Soft  Hard  Units\nMax locked memory {limit} {limit} bytes\n");
    verdicts(
        "memlock",
        memory_lock,
        &[
            ("proc/self/limits", &limits("65536"), Verdict::Advice),
            ("proc/self/limits", &limits("unlimited"), Verdict::Ok),
            ("proc/self/limits", &limits("65536"), Verdict::Advice),
            (
                "proc/self/status",
                "Name:\tx\nCapEff:\t0000000000004000\n",
                Verdict::Ok,
            ),
            (
                "proc/self/status",
                "Name:\tx\nCapEff:\t000001ffffffbfff\n",
                Verdict::Advice,
            ),
        ],
    );
}

#[test]
fn what_causes_faults_is_advised_against() {
    const VM: &str = "proc/sys/vm";
    let proactiveness = &format!("{VM}/compaction_proactiveness");
    let unevictable = &format!("{VM}/compact_unevictable_allowed");
    verdicts(
        "compaction",
        compaction,
        &[
            (proactiveness, "20", Verdict::Advice),
            (proactiveness, "0", Verdict::Ok),
            (unevictable, "1", Verdict::Advice),
            (unevictable, "0", Verdict::Ok),
        ],
    );
    const NUMA: &str = "proc/sys/kernel/numa_balancing";
    verdicts(
        "numa",
        numa_balancing,
        &[(NUMA, "1", Verdict::Advice), (NUMA, "0", Verdict::Ok)],
    );
    const THP: &str = "sys/kernel/mm/transparent_hugepage/enabled";
    verdicts(
        "thp",
        huge_pages,
        &[
            (THP, "[always] madvise never", Verdict::Advice),
            (THP, "always [madvise] never", Verdict::Ok),
        ],
    );
}

#[test]
fn the_governor_powersave_is_bad_only_without_a_preference() {
    let policy = format!("{CPU}/cpufreq/policy0");
    let governor_file = &format!("{policy}/scaling_governor");
    verdicts(
        "governor",
        governor,
        &[
            (governor_file, "schedutil", Verdict::Ok),
            (governor_file, "powersave", Verdict::Advice),
            (
                &format!("{policy}/energy_performance_preference"),
                "balance_performance",
                Verdict::Ok,
            ),
        ],
    );
}

#[test]
fn a_pid_namespace_is_the_machines_or_another() {
    for (name, target, expected) in [
        ("pid-own", "pid:[4026531836]", Verdict::Ok),
        ("pid-other", "pid:[4026532000]", Verdict::Advice),
    ] {
        let tree = Tree::new(name);
        tree.write("proc/self/ns/uts", "");
        symlink(target, tree.root().join("proc/self/ns/pid")).unwrap();
        assert_eq!(verdict(&tree, pid_namespace), expected);
    }
}

#[test]
fn the_table_has_a_line_for_each_check_and_each_fix() {
    let rows = [
        Row {
            check: "one",
            finding: Finding::ok("well"),
        },
        Row {
            check: "two",
            finding: Finding::fatal("ill", "heal it"),
        },
    ];
    assert_eq!(
        table(&rows),
        "ok     one               well\nFATAL  two               ill\n                         -> heal it"
    );
}
