"""Ways through the synth steps that choose K for each net, one file each: `synthesize --steps NAME`.

The interface: `synthesize(policy, start [net weights], net) -> (WK [net weights], K [net])`. What they share: `policy.rollout`.
NEEDS_CRITIC: whether it asks the policy's critic.
"""
