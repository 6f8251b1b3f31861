"""Settings that contradict each other where there are several seed policies, and the line that each gets."""

# Text that follows `recipe_texts.BASE`, so that it begins in line 6, and the one line that it gets.
OF_MEMBERS = {
    "seed_training:\n  members: {share: bootstrap}":
        "7: seed_training.members.share: bootstrap has no effect with one member, which is pi_0; raise count, or "
        "remove it",
    "judge:\n  policy: members":
        "7: judge.policy: members needs seed_training.members.count above 1; set it, or set judge.policy to seed",
    "judge:\n  uncertainty_penalty: 1.0":
        "7: judge.uncertainty_penalty: has no effect with judge.policy previous, which is no ensemble; set "
        "judge.policy to members, or remove it",
    "  prompts_per_iteration: []\nseed_training: {members: {count: 2}}":
        "7: seed_training.members.count: has no effect without iterations (data.prompts_per_iteration is []); remove "
        "it, or add some",
    "judge: {type: random}\nseed_training: {members: {count: 2}}":
        "7: seed_training.members.count: has no effect with judge.type random: members judge by their implicit reward; "
        "remove it, or set judge.type to implicit_reward",
    "judge: {policy: some/model}\nseed_training: {members: {count: 2}}":
        "7: seed_training.members.count: has no effect with judge.policy some/model, which learned nothing from the "
        "seed labels; remove it, or set judge.policy to members",
    "seed_training:\n  members:\n    count: 2\n    share: bootstrap":
        "9: seed_training.members.share: bootstrap has no effect with judge.policy previous: only disjoint members "
        "tell how reliable it is; set it to disjoint, or judge.policy to members",
    "seed_training: {members: {count: 2}}":
        "6: seed_training.members.count: has no effect with judge.policy previous and without an evaluation on "
        "held-out labels, by which the agreement of members is read; set data.heldout above 0 and "
        "evaluation.enabled true",
    "  heldout: 5\njudge: {reference: previous}\nseed_training: {members: {count: 2}}":
        "8: seed_training.members.count: members are compared with pi_init, and judge.reference is previous; set "
        "judge.reference to init, or remove the members",
    "  seed_labels: 3\n  heldout: 5\nseed_training: {members: {count: 4}}":
        "8: seed_training.members.count: 4 members have more shares than data.seed_labels (3); lower it",
    "  prompts_per_iteration: [9]\njudge:\n  consistency: true":
        "8: judge.consistency: compares the judges of two iterations; remove it, or add an iteration",
    "refine: {loss: sppo}\nnoise: {enabled: false}\njudge:\n  consistency: true":
        "9: judge.consistency: weighs the labels of pairs, which loss sppo does not read; remove it",
    "judge:\n  policy: seed\n  consistency: true":
        "8: judge.consistency: compares pi_{i-2} with pi_{i-1} as judges, and judge.policy seed judges in their place; "
        "remove it, or set judge.policy to previous",
    "judge:\n  reference: previous\n  consistency: true":
        "8: judge.consistency: compares two judges with one reference, and judge.reference previous is another one in "
        "each iteration; remove it, or set judge.reference to init",
    "judge:\n  peers: {}":
        "7: judge.peers: the peer's chain starts from a further seed policy, and there is none; set "
        "seed_training.members.count to 2",
    "seed_training: {members: {count: 2}}\njudge:\n  peers:\n    forget_rate: 0":
        "9: judge.peers.forget_rate: 0 has no effect: both chains learn from all their pairs; raise it, or remove "
        "judge.peers",
    "seed_training: {members: {count: 2}}\njudge:\n  policy: members\n  peers: {}":
        "9: judge.peers: each chain labels its own answers, and judge.policy members labels in its place; remove it, "
        "or set judge.policy to previous",
    "seed_training: {members: {count: 2}}\njudge:\n  peers: {}\n  keep: 0.5":
        "9: judge.keep: chooses among the pairs, which the peer of judge.peers does; remove it, or judge.peers",
    "seed_training: {members: {count: 2}}\njudge:\n  peers: {}\n  consistency: true":
        "9: judge.consistency: weighs doubtful labels, which the peer of judge.peers leaves out; remove it, or "
        "judge.peers",
    "judge: {peers: {}}\nseed_training:\n  members:\n    share: bootstrap\n    count: 3":
        "10: seed_training.members.count: with judge.peers and bootstrap, only the first member is read: the peer's "
        "chain starts from it; set it to 2",
    "evaluation:\n  min_judge_reliability: 0.6":
        "7: evaluation.min_judge_reliability: needs an evaluation on held-out labels; set data.heldout above 0 and "
        "evaluation.enabled true",
    "  heldout: 5\nevaluation:\n  min_judge_reliability: 0.6":
        "8: evaluation.min_judge_reliability: needs members that learned from disjoint shares of the seed labels; set "
        "seed_training.members.count to 2 and seed_training.members.share to disjoint",
}  # fmt: skip
