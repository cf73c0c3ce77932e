"""The section `reward`: several reward models in place of one. The first is `model.reward`."""

from __future__ import annotations

from pydantic import Field

from gipo_mc.config.section import Section, fixed_by_content


class RewardConfig(Section):
    models: list[str] = fixed_by_content(
        default_factory=list, description="RL: reward models beside model.reward, an ensemble with it"
    )
    deviations: float = Field(
        0.0, ge=0, description="an ensemble pays its mean minus so many standard deviations of its models"
    )

    def problems(self, first: str) -> list[str]:
        """Combinations that have no meaning, each with the fix. first: model.reward."""
        found = []
        if functions := [name for name in ([first] if self.models else []) + self.models if name.startswith("python:")]:
            found.append(
                f"reward.models makes an ensemble of model.reward and itself, and {', '.join(functions)} is a function,"
                " whose rewards have another scale than a model's: name reward models alone"
            )
        if again := [name for name in self.models if [first, *self.models].count(name) > 1]:
            found.append(
                f"reward.models names {again[0]} more than once, model.reward counted: a model does not disagree with "
                "itself, so take it out"
            )
        if self.deviations and not self.models:
            found.append(
                f"reward.deviations={self.deviations:g} is what an ensemble loses where its models disagree, and there "
                "is one model: name others in reward.models, or set it to 0"
            )
        return found
