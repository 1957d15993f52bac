//! The desktop's power profile, from files: power-profiles-daemon and its kind set either of two.

use std::fs;
use std::path::Path;

use super::parameters::Profile;

/// Where firmware has profiles of its own.
const PLATFORM: &str = "sys/firmware/acpi/platform_profile";
/// Elsewhere: what the processor is told to favour.
const PREFERENCE: &str = "sys/devices/system/cpu/cpufreq/policy0/energy_performance_preference";

/// That of this machine.
pub(crate) fn profile() -> Profile {
    profile_below(Path::new("/"))
}

fn profile_below(root: &Path) -> Profile {
    let read = |file| fs::read_to_string(root.join(file)).ok();
    let text = read(PLATFORM).or_else(|| read(PREFERENCE));
    match text.as_deref().map(str::trim) {
        Some("low-power" | "quiet" | "cool" | "power" | "balance_power") => Profile::Powersave,
        Some("balanced" | "balance_performance" | "default") => Profile::Balanced,
        _ => Profile::Gaming,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::tree::Tree;

    #[test]
    fn firmware_comes_before_the_processor_and_nothing_means_gaming() {
        let tree = Tree::new("power");
        assert_eq!(profile_below(tree.root()), Profile::Gaming);
        tree.write(PREFERENCE, "balance_power\n");
        assert_eq!(profile_below(tree.root()), Profile::Powersave);
        tree.write(PLATFORM, "balanced\n");
        assert_eq!(profile_below(tree.root()), Profile::Balanced);
        tree.write(PLATFORM, "performance\n");
        assert_eq!(profile_below(tree.root()), Profile::Gaming);
    }
}
