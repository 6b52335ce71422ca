//! Pins a pod's namespaces as files so that they outlive every process in the pod.

fn main() {
    println!("{{\"error\":\"not built yet\",\"step\":\"start\"}}");
    std::process::exit(1);
}
