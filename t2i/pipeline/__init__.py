"""What every pipeline shares; the stories themselves are in `pipelines/`.

base       stages by name on one device, opened and saved
slots      the places of a chain, and how each draws by default
arguments  what users give to a call, checked
inputs     pictures that users give: to inpaint, to edit, or taken apart
request    a call: stages run over rows of pictures
output     pictures that know how they were made
loading    from a name or a folder to a pipeline
"""
